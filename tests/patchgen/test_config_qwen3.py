"""The Qwen3 example: generated from a real release, compiled, and run against stock where torch is there."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rocm_overlay.patchgen import ModelingCodeGenerator, PatchConfig
from rocm_overlay.patchgen.config.load import load
from rocm_overlay.patchgen.trees import open_tree

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "patchgen_qwen3"
RUN = """
import sys, torch
from transformers import Qwen3Config
from transformers.models.qwen3 import modeling_qwen3 as stock
import patched_modeling_qwen3_gpu as ours

config = Qwen3Config(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, max_position_embeddings=64,
)
torch.manual_seed(0)
first, second = stock.Qwen3ForCausalLM(config).eval(), ours.Qwen3ForCausalLM(config).eval()
print(second.load_state_dict(first.state_dict()))
ids = torch.randint(0, 64, (2, 12))
with torch.inference_mode():
    torch.testing.assert_close(second(ids).logits, first(ids).logits, rtol=1e-5, atol=1e-5)
    tokens = [model.generate(ids, max_new_tokens=8, do_sample=False) for model in (first, second)]
    assert torch.equal(*tokens)
layer = second.model.layers[1]
assert (layer.layer_idx, type(layer.mlp).__name__) == (1, "SwiGLUMLP"), layer
assert not hasattr(ours, "Qwen3ForTokenClassification") and hasattr(stock, "Qwen3ForTokenClassification")
assert "amd_ops.rms_norm" in open(ours.__file__).read()
print("agree")
"""


@pytest.mark.parametrize("release", ["4.57.1", "4.57.3", "4.57.6"])
@pytest.mark.parametrize("mode", ["standalone", "overlay"])
def test_the_example_generates_from_every_release_that_it_names(
    wheel: Callable[[str], Path], release: str, mode: str
) -> None:
    config = load(EXAMPLE / "qwen3_gpu_patch_gen_config.py").choose(None)
    if mode == "overlay":
        config.patches = [patch for patch in config.patches if patch.kind != "excluded"]
    generator = ModelingCodeGenerator(config, source=wheel(release), mode=mode)  # type: ignore[arg-type]
    text = generator.generate()
    compile(text, "x.py", "exec")
    assert generator.result is not None
    assert {one.status.value for one in generator.result.outcomes} == {"applied"}
    if mode == "standalone":
        assert f"#  Based on: transformers=={release} (sha256:" in text
    assert "# Copyright 2025 The Qwen team, Alibaba Group" in text


def test_a_tiny_model_of_the_example_agrees_with_stock(tmp_path: Path) -> None:
    for name in ("torch", "transformers"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    config = load(EXAMPLE / "qwen3_gpu_patch_gen_config.py").choose(None)
    ModelingCodeGenerator(config).generate(tmp_path / config.target_file)
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        cwd=tmp_path,
        env={"PYTHONPATH": ":".join([str(tmp_path), str(EXAMPLE), *sys.path]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.stdout.splitlines() == ["<All keys matched successfully>", "agree"], done.stderr


@pytest.mark.parametrize("release", ["4.57.6", "5.23.0"])
def test_every_20th_modeling_file_becomes_standalone(wheel: Callable[[str], Path], release: str) -> None:
    """An import more and absolute imports: the rest of the text is stock's, whatever it holds."""
    tree = open_tree(wheel(release))
    for path in tree.modeling_files[::20]:
        config = PatchConfig("transformers." + path.removesuffix(".py").replace("/", "."), "x.py")
        config.add_import("my_ops", alias="_my_ops")
        text = ModelingCodeGenerator(config, source=wheel(release)).generate()
        kept = [line for line in tree.read(path).decode().splitlines() if "import" not in line]
        assert [line for line in text.splitlines() if line in set(kept)][-len(kept) :] == kept, path
