"""A model of text and images: its own file and those of its parts are overlaid together."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import transformers
from rocm_overlay.verify import api

from tests.numeric.shrink import shrink


@pytest.mark.parametrize("name", ["PaliGemma", pytest.param("Gemma3", marks=pytest.mark.full)])
def test_an_image_text_model_is_verified_with_all_its_parts(name: str, tmp_path: Path) -> None:
    model = getattr(transformers, f"{name}ForConditionalGeneration")
    config = shrink(model.config_class())
    config.architectures = [model.__name__]
    config.save_pretrained(tmp_path)
    found = api.verify(tmp_path / "config.json", python=sys.executable, tiers="torch", toggles=("all",), cases="quick")
    assert found.ok, found.problems
    ran = {op for run in found.content["runs"] for op in run["ran"]}
    assert {"rms_norm", "attention"} <= ran
