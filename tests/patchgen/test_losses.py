"""What a release loses is named: which site or part, where, why, compared with which release."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from rocm_overlay.overlays.recipes import recipe_set
from rocm_overlay.patchgen import losses
from rocm_overlay.patchgen.engine import Result, generate

from tests.patchgen.support import source
from tests.patchgen.test_recipe_qk_norm_rope import QWEN
from tests.patchgen.test_recipe_rms_norm import LLAMA

PATH = "models/x/modeling_x.py"


def made(text: str, path: str = PATH) -> Result:
    return generate(source(text), path, recipe_set())


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Two releases are known, both with the same file."""
    monkeypatch.setattr(losses, "KNOWN", tmp_path)
    for release in ("4.57.6", "5.23.0"):
        (tmp_path / f"{release}.json").write_bytes(losses.render(release, [made(QWEN + LLAMA)]))
    losses.known_releases.cache_clear()
    losses.known_sites.cache_clear()
    yield tmp_path
    losses.known_releases.cache_clear()
    losses.known_sites.cache_clear()


def lost(text: str, version: str = "5.24.0") -> list[str]:
    return [str(one) for one in losses.find_losses(version, [made(text)])]


def test_nothing_is_lost_by_a_text_with_the_same_sites(known: Path) -> None:
    assert lost(QWEN + LLAMA) == []
    assert lost(QWEN.replace("past_key_values", "cache") + LLAMA) == []


def test_a_part_of_a_site_that_goes_is_a_loss(known: Path) -> None:
    text = QWEN.replace("self.layer_idx, extra", "0, extra") + LLAMA
    (one,) = losses.find_losses("5.24.0", [made(text)])
    assert (one.what, one.qualname, one.release) == ("qk_rope.cache", "Attention.forward", "5.23.0")
    assert one.line is not None
    assert "apply_rotary_pos_emb(q, k, cos, sin)" in source(text).decode().splitlines()[one.line - 1]
    assert one.reason == "the site is there without its cache"


def test_a_site_that_is_declined_says_why_and_where(known: Path) -> None:
    text = QWEN.replace("        shape = (*x.shape[:-1], -1, 8)\n", "") + LLAMA
    assert any("qk_rope Attention.forward: the forward begins with a projection" in one for one in lost(text))
    assert all(one.startswith(f"{PATH}:") for one in lost(text))


def test_a_shape_and_a_function_that_are_gone(known: Path) -> None:
    text = QWEN + LLAMA.replace("torch.rsqrt", "torch.sqrt").replace("class X", "class Z")
    assert any("the function is gone; nearest: ZRMSNorm.forward" in one for one in lost(text))
    text = QWEN + LLAMA.replace("torch.rsqrt", "torch.sqrt")
    assert any("rms_norm XRMSNorm.forward: the shape is gone" in one or "none of the four" in one for one in lost(text))


def test_a_site_that_moved_to_another_function_is_no_loss(known: Path) -> None:
    assert lost(QWEN + LLAMA.replace("class X", "class Another")) == []


def test_a_file_that_is_gone_is_a_loss_where_all_files_were_made(known: Path) -> None:
    other = made(LLAMA, "models/y/modeling_y.py")
    (one,) = losses.find_losses("5.24.0", [other], paths=[other.path])
    assert (one.path, one.what) == (PATH, "file")
    assert "the file is gone, with" in one.reason
    assert losses.find_losses("5.24.0", [other]) == ()


@pytest.mark.parametrize(
    ("version", "first"),
    [
        ("5.24.0", "5.23.0"),
        ("5.25.0.dev0", "5.23.0"),
        ("5.0.0rc1", "5.23.0"),
        ("4.56.2", "4.57.6"),
        ("4.57.6+rocm6", "4.57.6"),
        ("4.51.3", "4.57.6"),
        ("unknown", "5.23.0"),
    ],
)
def test_the_nearest_release_is_one_of_the_same_major(known: Path, version: str, first: str) -> None:
    assert losses.nearest_releases(version)[0] == first


def test_a_release_before_the_first_known_one_is_compared_with_nothing_earlier(known: Path) -> None:
    assert losses.nearest_releases("4.50.0", earlier=True) == []
    assert losses.nearest_releases("5.23.0", earlier=True) == ["4.57.6"]


def test_of_an_earlier_major_the_last_release_is_the_nearest(known: Path) -> None:
    for release in ("4.53.3", "4.57.0"):
        (known / f"{release}.json").write_bytes(losses.render(release, []))
    losses.known_releases.cache_clear()
    assert losses.nearest_releases("5.20.0", earlier=True) == ["4.57.6", "4.57.0", "4.53.3"]
    assert losses.nearest_releases("5.0.0") == ["5.23.0", "4.57.6", "4.57.0", "4.53.3"]


def test_losses_of_one_cause_are_told_together(known: Path) -> None:
    broken = QWEN.replace("self.layer_idx, extra", "0, extra") + LLAMA
    (known / "5.23.0.json").write_bytes(
        losses.render("5.23.0", [made(QWEN + LLAMA, f"models/x/modeling_{n}.py") for n in range(4)])
    )
    losses.known_sites.cache_clear()
    found = losses.find_losses("5.24.0", [made(broken, f"models/x/modeling_{n}.py") for n in range(4)])
    text = list(losses.lines(found, most=2))
    assert text[0] == "lost 4 x qk_rope.cache: the site is there without its cache (compared with 5.23.0)"
    assert [line.strip().split(":")[0] for line in text[1:3]] == [f"models/x/modeling_{n}.py" for n in range(2)]
    assert text[3:] == ["  and 2 more; -v lists them"]


def test_accepted_losses_are_recorded(known: Path, tmp_path: Path) -> None:
    found = losses.find_losses("5.24.0", [made(QWEN)])
    assert found
    losses.record(tmp_path / "out", "5.24.0", found)
    document = json.loads((tmp_path / "out" / losses.RECORD).read_bytes())
    assert document["release"] == "5.24.0"
    assert document["losses"] == losses.as_json(found)
