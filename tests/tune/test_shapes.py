"""Shapes computed by hand for eight models, TP 1, 2 and 8, fused and not, against `tune shapes`."""

from __future__ import annotations

from pathlib import Path

import pytest
from rocm_overlay.tune.models import read_model
from rocm_overlay.tune.shapes import parse_ladder, read_untuned

from .support import BF16, Cli, config, llama

# (config, {tp: (unfused, fused)}); each entry (N, K, bias), in the model's order. None: the degree does not divide.
Expected = dict[int, "tuple[list[tuple[int, int, bool]], list[tuple[int, int, bool]]] | None"]


def plain(*pairs: tuple[int, int]) -> list[tuple[int, int, bool]]:
    return [(n, k, False) for n, k in pairs]


QWEN25 = {"model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28}
MODELS: dict[str, tuple[dict[str, object], Expected]] = {
    "llama-3.1-8b": (
        {
            "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
        },
        {
            1: (
                plain((4096, 4096), (1024, 4096), (4096, 4096), (14336, 4096), (4096, 14336), (128256, 4096)),
                plain((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (128256, 4096)),
            ),
            2: (
                plain((2048, 4096), (512, 4096), (4096, 2048), (7168, 4096), (4096, 7168), (64128, 4096)),
                plain((3072, 4096), (4096, 2048), (14336, 4096), (4096, 7168), (64128, 4096)),
            ),
            8: (
                plain((512, 4096), (128, 4096), (4096, 512), (1792, 4096), (4096, 1792), (16032, 4096)),
                plain((768, 4096), (4096, 512), (3584, 4096), (4096, 1792), (16032, 4096)),
            ),
        },
    ),
    "llama-3.1-70b": (
        {
            "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
            "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256,
        },
        {
            1: (
                plain((8192, 8192), (1024, 8192), (8192, 8192), (28672, 8192), (8192, 28672), (128256, 8192)),
                plain((10240, 8192), (8192, 8192), (57344, 8192), (8192, 28672), (128256, 8192)),
            ),
            2: (
                plain((4096, 8192), (512, 8192), (8192, 4096), (14336, 8192), (8192, 14336), (64128, 8192)),
                plain((5120, 8192), (8192, 4096), (28672, 8192), (8192, 14336), (64128, 8192)),
            ),
            8: (
                plain((1024, 8192), (128, 8192), (8192, 1024), (3584, 8192), (8192, 3584), (16032, 8192)),
                plain((1280, 8192), (8192, 1024), (7168, 8192), (8192, 3584), (16032, 8192)),
            ),
        },
    ),
    "qwen2.5-7b": (
        {**QWEN25, "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064},
        {
            1: (
                [
                    (3584, 3584, True), (512, 3584, True),
                    *plain((3584, 3584), (18944, 3584), (3584, 18944), (152064, 3584)),
                ],
                [(4608, 3584, True), *plain((3584, 3584), (37888, 3584), (3584, 18944), (152064, 3584))],
            ),
            2: (
                [
                    (1792, 3584, True), (256, 3584, True),
                    *plain((3584, 1792), (9472, 3584), (3584, 9472), (76032, 3584)),
                ],
                [(2304, 3584, True), *plain((3584, 1792), (18944, 3584), (3584, 9472), (76032, 3584))],
            ),
            8: None,
        },
    ),
    "qwen3-8b": (
        {
            "model_type": "qwen3", "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
        },
        {
            1: (
                plain((4096, 4096), (1024, 4096), (4096, 4096), (12288, 4096), (4096, 12288), (151936, 4096)),
                plain((6144, 4096), (4096, 4096), (24576, 4096), (4096, 12288), (151936, 4096)),
            ),
            2: (
                plain((2048, 4096), (512, 4096), (4096, 2048), (6144, 4096), (4096, 6144), (75968, 4096)),
                plain((3072, 4096), (4096, 2048), (12288, 4096), (4096, 6144), (75968, 4096)),
            ),
            8: (
                plain((512, 4096), (128, 4096), (4096, 512), (1536, 4096), (4096, 1536), (18992, 4096)),
                plain((768, 4096), (4096, 512), (3072, 4096), (4096, 1536), (18992, 4096)),
            ),
        },
    ),
    "gemma-2b": (
        {
            "model_type": "gemma", "hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 18,
            "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 256000,
        },
        {
            1: (
                plain((2048, 2048), (256, 2048), (2048, 2048), (16384, 2048), (2048, 16384), (256000, 2048)),
                plain((2560, 2048), (2048, 2048), (32768, 2048), (2048, 16384), (256000, 2048)),
            ),
            2: (
                plain((1024, 2048), (256, 2048), (2048, 1024), (8192, 2048), (2048, 8192), (128000, 2048)),
                plain((1536, 2048), (2048, 1024), (16384, 2048), (2048, 8192), (128000, 2048)),
            ),
            8: (
                plain((256, 2048), (256, 2048), (2048, 256), (2048, 2048), (2048, 2048), (32000, 2048)),
                plain((768, 2048), (2048, 256), (4096, 2048), (2048, 2048), (32000, 2048)),
            ),
        },
    ),
    "mixtral-8x7b": (
        {
            "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000,
            "num_local_experts": 8, "num_experts_per_tok": 2,
        },
        {
            1: (
                plain((4096, 4096), (1024, 4096), (4096, 4096), (8, 4096), (14336, 4096), (4096, 14336), (32000, 4096)),
                plain((6144, 4096), (4096, 4096), (8, 4096), (28672, 4096), (4096, 14336), (32000, 4096)),
            ),
            2: (
                plain((2048, 4096), (512, 4096), (4096, 2048), (8, 4096), (7168, 4096), (4096, 7168), (16000, 4096)),
                plain((3072, 4096), (4096, 2048), (8, 4096), (14336, 4096), (4096, 7168), (16000, 4096)),
            ),
            8: (
                plain((512, 4096), (128, 4096), (4096, 512), (8, 4096), (1792, 4096), (4096, 1792), (4000, 4096)),
                plain((768, 4096), (4096, 512), (8, 4096), (3584, 4096), (4096, 1792), (4000, 4096)),
            ),
        },
    ),
    "phi-3-mini": (
        {
            "model_type": "phi3", "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32064,
        },
        {
            tp: (shapes, shapes)
            for tp, shapes in {
                1: plain((9216, 3072), (3072, 3072), (16384, 3072), (3072, 8192), (32064, 3072)),
                2: plain((4608, 3072), (3072, 1536), (8192, 3072), (3072, 4096), (16032, 3072)),
                8: plain((1152, 3072), (3072, 384), (2048, 3072), (3072, 1024), (4008, 3072)),
            }.items()
        },
    ),
    "llava-1.5-7b": (
        {
            "model_type": "llava",
            "text_config": {
                "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
                "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32064,
            },
            "vision_config": {
                "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096,
                "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 336, "patch_size": 14,
            },
        },
        {
            1: (
                [
                    *plain((4096, 4096), (4096, 4096), (4096, 4096), (11008, 4096), (4096, 11008), (32064, 4096)),
                    (1024, 1024, True), (1024, 1024, True), (4096, 1024, True), (1024, 4096, True),
                    (4096, 1024, True), (4096, 4096, True),
                ],
                [
                    *plain((12288, 4096), (4096, 4096), (22016, 4096), (4096, 11008), (32064, 4096)),
                    (3072, 1024, True), (1024, 1024, True), (4096, 1024, True), (1024, 4096, True),
                    (4096, 1024, True), (4096, 4096, True),
                ],
            ),
            2: (
                [
                    *plain((2048, 4096), (2048, 4096), (4096, 2048), (5504, 4096), (4096, 5504), (16032, 4096)),
                    (512, 1024, True), (1024, 512, True), (2048, 1024, True), (1024, 2048, True),
                    (4096, 1024, True), (4096, 4096, True),
                ],
                [
                    *plain((6144, 4096), (4096, 2048), (11008, 4096), (4096, 5504), (16032, 4096)),
                    (1536, 1024, True), (1024, 512, True), (2048, 1024, True), (1024, 2048, True),
                    (4096, 1024, True), (4096, 4096, True),
                ],
            ),
            8: (
                [
                    *plain((512, 4096), (512, 4096), (4096, 512), (1376, 4096), (4096, 1376), (4008, 4096)),
                    (128, 1024, True), (1024, 128, True), (512, 1024, True), (1024, 512, True),
                    (4096, 1024, True), (4096, 4096, True),
                ],
                [
                    *plain((1536, 4096), (4096, 512), (2752, 4096), (4096, 1376), (4008, 4096)),
                    (384, 1024, True), (1024, 128, True), (512, 1024, True), (1024, 512, True),
                    (4096, 1024, True), (4096, 4096, True),
                ],
            ),
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("fused", ["none", "qkv,gate_up"])
@pytest.mark.parametrize("tp", [1, 2, 8])
@pytest.mark.parametrize("name", MODELS)
def test_by_hand(tmp_path: Path, tune: Cli, name: str, tp: int, fused: str) -> None:
    values, expected = MODELS[name]
    path = config(tmp_path / "config.json", **values)
    answer = tune("shapes", "--config", path, "--tp", tp, "--fused", fused, "--m-ladder", "1,16", "--json")
    wanted = expected[tp]
    if wanted is None:
        assert answer.code == 2
        assert "28" in answer.json()["error"]["message"]
        return
    shapes = answer.json()["shapes"]
    found = [(shape["n"], shape["k"], shape["bias"]) for shape in shapes if shape["m"] in (1, 576, 577)]
    assert found == wanted[fused != "none"]
    assert {shape["m"] for shape in shapes if shape["kind"] != "image"} == {1, 16}
    assert {shape["dtype"] for shape in shapes} == {BF16}


def test_pictures_set_m_of_a_tower(tmp_path: Path, tune: Cli) -> None:
    path = config(tmp_path / "config.json", **MODELS["llava-1.5-7b"][0])
    shapes = tune("shapes", "--config", path, "--m-ladder", "1", "--json").json()["shapes"]
    tower = {shape["m"] for shape in shapes if shape["role"].startswith("vision.")}
    assert tower == {577, 2 * 577, 4 * 577, 8 * 577}, "24 x 24 patches and the class token"
    assert {s["m"] for s in shapes if s["role"].startswith("projector.")} == {576, 1152, 2304, 4608}


def test_counts_and_active_experts(tmp_path: Path) -> None:
    model = read_model(config(tmp_path / "c.json", **MODELS["mixtral-8x7b"][0]), fused=frozenset({"gate_up"}))
    expert = next(linear for linear in model.linears if linear.role == "expert.gate_up")
    assert (expert.count, expert.active, expert.kind) == (32 * 8, 32 * 2, "expert")
    assert sum(linear.weights for linear in model.linears) == 46_571_454_464, "46.70 B without embedding and norms"


def test_the_csv_is_aiters(tmp_path: Path, tune: Cli) -> None:
    path = llama(tmp_path / "config.json")
    answer = tune("shapes", "--config", path, "--m-ladder", "decode")
    lines = answer.out.splitlines()
    assert lines[0] == "M,N,K,bias,dtype,outdtype,scaleAB,bpreshuffle"
    assert "1,1024,4096,False,torch.bfloat16,torch.bfloat16,False,False" in lines
    assert len(lines) == len(set(lines)) == 1 + 5 * 9, "q_proj and o_proj are one shape here"
    out = tmp_path / "untuned.csv"
    assert tune("shapes", "--config", path, "--m-ladder", "decode", "-o", out).code == 0
    assert out.read_text() == answer.out
    assert len(read_untuned(out)[0]) == 45


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("decode", (1, 2, 4, 8, 16, 32, 64, 128, 256)),
        ("prefill", (512, 1024, 2048, 4096, 8192)),
        ("full", tuple(2**i for i in range(13))),
        ("1,2,4", (1, 2, 4)),
        ("4,2,4", (2, 4)),
        ("8x128", (8, 1024)),
        ("decode,3", (1, 2, 3, 4, 8, 16, 32, 64, 128, 256)),
    ],
)
def test_ladders(text: str, values: tuple[int, ...]) -> None:
    assert parse_ladder(text) == values


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--m-ladder", "0"], "must hold values from 1"),
        (["--m-ladder", "many"], "not a value of M"),
        (["--m-ladder", "-4"], "not a value of M"),
        (["--m-ladder", "99999999"], "must hold values"),
        (["--fused", "qvk"], "names no known group"),
        (["--tp", "0"], "tensor parallelism of 0"),
        (["--tp", "3"], "cannot be split over 3"),
        (["--dtype", "fp4"], "not a dtype"),
        (["--assume", "alien"], "not known"),
    ],
)
def test_bad_options(tmp_path: Path, tune: Cli, options: list[str], said: str) -> None:
    answer = tune("shapes", "--config", llama(tmp_path / "config.json"), *options)
    assert (answer.code, answer.out) == (2, "")
    assert said in answer.err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "alien"}, "'alien': not known"),
        ({"model_type": "absent"}, "missing: not known"),
        ({"hidden_size": "4096"}, "hidden_size is '4096', not a whole number"),
        ({"hidden_size": -1}, "hidden_size is -1"),
        ({"hidden_size": 4096.5}, "hidden_size is 4096.5"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"num_attention_heads": True}, "num_attention_heads is True"),
        ({"num_attention_heads": 30}, "head_dim is missing and hidden_size 4096 is not a multiple of 30"),
        ({"num_key_value_heads": 5}, "does not divide 32 heads"),
        ({"attention_bias": "no"}, "attention_bias is 'no', not true or false"),
        ({"model_type": "qwen3", "vocab_size": "absent"}, "vocab_size is missing"),
        ({"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 9}, "more than 8 experts"),
        ({"model_type": "llava"}, "vision_config is missing"),
        ({"model_type": "llava", "vision_config": [1]}, "vision_config is not an object"),
    ],
)
def test_bad_configs_name_the_key(tmp_path: Path, tune: Cli, changes: dict[str, object], said: str) -> None:
    path = llama(tmp_path / "config.json", **changes)
    answer = tune("shapes", "--config", path, "--json")
    error = answer.json()["error"]
    assert (answer.code, error["code"]) == (2, 2)
    assert said in error["message"]
    assert str(path) in error["message"]
    assert error["remedy"]


def test_bad_config_files(tmp_path: Path, tune: Cli) -> None:
    broken = tmp_path / "config.json"
    broken.write_text('{\n "model_type": "llama",\n oops\n}')
    answer = tune("shapes", "--config", tmp_path)
    assert answer.code == 2
    assert f"{broken}:3: is not JSON" in answer.err
    broken.write_text("[1, 2]")
    assert "not a JSON object" in tune("shapes", "--config", broken).err
    answer = tune("shapes", "--config", "lama-3.1-8b")
    assert answer.code == 2
    assert "a bundled name such as llama-3.1-8b" in answer.err


def test_an_unknown_type_can_be_read_as_a_known_one(tmp_path: Path, tune: Cli) -> None:
    path = llama(tmp_path / "config.json", model_type="alien")
    assert tune("shapes", "--config", path, "--assume", "llama").out == tune("shapes", "--config", "llama-3.1-8b").out


def test_defaults_of_transformers_are_named(tmp_path: Path, tune: Cli) -> None:
    answer = tune("shapes", "--config", config(tmp_path / "c.json", model_type="llama"), "--json")
    assert any("default used: hidden_size=4096" in note for note in answer.json()["notes"])
