"""Every bundled config against the stock transformers model it describes: the same Linears, the same weights."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from rocm_overlay.tune.library import configs
from rocm_overlay.tune.models import read_model
from rocm_overlay.tune.places import bundle

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CONFIGS = {path.stem: path for path in configs(bundle())}
# Published sizes in parameters, all weights counted once (tied heads too).
PUBLISHED = {
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "mistral-7b": 7_248_023_552,
    "mistral-small-24b": 23_572_403_200,
    "mixtral-8x7b": 46_702_792_704,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-8b": 8_190_735_360,
    "qwen3-32b": 32_762_123_264,
    "qwen3-30b-a3b": 30_532_122_624,
    "gemma-2b": 2_506_172_416,
    "gemma-7b": 8_537_680_896,
    "gemma-2-9b": 9_241_705_984,
    "phi-3-mini": 3_821_079_552,
}


# One of each architecture always; other sizes of it in the long matrix. Thousands of expert modules take minutes to
# build: whole in the long matrix, with fewer experts always.
LARGE = ("deepseek-v3", "qwen3-30b-a3b", "mixtral-8x7b")
ALWAYS = {
    "gemma-2-9b",
    "gemma-2b",
    "gemma-3-4b",
    "gpt-oss-20b",
    "llama-3.1-8b",
    "llava-1.5-7b",
    "mistral-7b",
    "paligemma-3b-224",
    "phi-3-mini",
    "qwen2.5-7b",
    "qwen2.5-vl-7b",
    "qwen3-8b",
}
SMALLER = {"num_hidden_layers": 5, "n_routed_experts": 16, "num_experts": 16, "num_local_experts": 4}
NAMES = [name if name in ALWAYS else pytest.param(name, marks=pytest.mark.full) for name in sorted(CONFIGS)]


def stock(path: Path) -> Any:
    """Build the stock model without memory: every tensor on the meta device."""
    values = json.loads(path.read_text())
    settings = transformers.AutoConfig.for_model(**values)
    kind = transformers.AutoModelForImageTextToText if "vision_config" in values else transformers.AutoModelForCausalLM
    with torch.device("meta"):
        return kind.from_config(settings)


def linears_of(model: Any) -> Counter[tuple[int, int, bool]]:
    found: Counter[tuple[int, int, bool]] = Counter()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            found[(module.out_features, module.in_features, module.bias is not None)] += 1
        elif type(module).__name__ == "GptOssTopKRouter":
            found[(*module.weight.shape, True)] += 1
    return found


def ours_of(path: Path) -> Counter[tuple[int, int, bool]]:
    found: Counter[tuple[int, int, bool]] = Counter()
    for linear in read_model(path).linears:
        found[(linear.n, linear.k, linear.bias)] += linear.count
    return found


@pytest.mark.parametrize("name", NAMES)
def test_the_linears_are_those_of_the_stock_model(name: str) -> None:
    model = stock(CONFIGS[name])
    assert ours_of(CONFIGS[name]) == linears_of(model)
    if name in PUBLISHED:
        parameters = {id(p): p.numel() for p in model.parameters()}
        assert sum(parameters.values()) == PUBLISHED[name]


@pytest.mark.parametrize("name", LARGE)
def test_so_are_those_of_large_models_with_fewer_experts(name: str, tmp_path: Path) -> None:
    values = json.loads(CONFIGS[name].read_text())
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**values, **{key: value for key, value in SMALLER.items() if key in values}}))
    assert ours_of(path) == linears_of(stock(path))


def test_there_are_enough_models() -> None:
    assert len(CONFIGS) >= 20
    assert set(PUBLISHED) | ALWAYS <= set(CONFIGS)


def test_fusing_keeps_every_weight() -> None:
    for path in CONFIGS.values():
        plain, fused = (read_model(path, fused=choice) for choice in (frozenset[str](), frozenset({"qkv", "gate_up"})))
        assert sum(x.weights for x in plain.linears) == sum(x.weights for x in fused.linears), path
