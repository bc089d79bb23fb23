"""Which overlay a model has: by its classes and by every model type, in the trees of real releases."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from rocm_overlay.errors import UnsupportedError
from rocm_overlay.install import catalog, lookup, operations
from rocm_overlay.install.session import Options
from rocm_overlay.verify import target

from tests.install.support import STOCK, make_bundle, make_site

RELEASES = ("4.53.3", "4.57.6", "5.23.0")


@pytest.mark.parametrize("release", RELEASES)
def test_every_model_type_leads_to_the_files_of_its_folder(release: str, stock_tree: Callable[[str], Path]) -> None:
    """Of every folder, so also of those whose overlays are generated."""
    package = stock_tree(release) / "transformers"
    types = lookup.model_types(package)
    assert len(types) > 400
    lost = [
        (name, folder)
        for name, folders in types.items()
        for folder in folders
        if folder not in lookup._folders(types, package, name) and name.replace("-", "_") not in folders
    ]
    assert lost == []
    manifest = catalog.load(".".join(release.split(".")[:2]))
    curated = {file.model: file.path for file in manifest.files if release in file.releases}
    for folder, path in curated.items():
        assert path in lookup._modeling_files(package, folder)
    names = [name for name, folders in types.items() for folder in folders if folder in curated]
    assert len(names) > len(curated), "configurations of texts and images have types of their own"


@pytest.mark.parametrize("release", RELEASES)
def test_types_of_parts_have_overlays(release: str, stock_tree: Callable[[str], Path]) -> None:
    package = stock_tree(release) / "transformers"
    environment = lookup.environment_of(package, catalog.BUNDLE)
    looked = 0
    for name, folder in (
        ("llama", "llama"),
        ("gemma3_text", "gemma3"),
        ("gemma3n_text", "gemma3n"),
        ("llama4_text", "llama4"),
        ("qwen2_5_vl_text", "qwen2_5_vl"),
        ("siglip_vision_model", "siglip"),
    ):
        if f"models/{folder}/modeling_{folder}.py" not in environment.bundled():
            continue
        looked += 1
        (found,) = (one for one in lookup.pairs(environment, [name]) if one.model == folder)
        assert (found.path, found.installed) == (f"models/{folder}/modeling_{folder}.py", "stock")
    assert looked >= 3


@pytest.mark.parametrize("release", RELEASES)
def test_a_class_leads_to_the_file_that_holds_it(release: str, stock_tree: Callable[[str], Path]) -> None:
    package = stock_tree(release) / "transformers"
    for name, path in (
        ("Gemma3ForCausalLM", "models/gemma3/modeling_gemma3.py"),
        ("Qwen2_5_VLTextModel", "models/qwen2_5_vl/modeling_qwen2_5_vl.py"),
        ("LlamaForCausalLM", "models/llama/modeling_llama.py"),
    ):
        assert re.search(rf"^class {name}\b", (package / path).read_text(), re.MULTILINE)
        assert lookup.paths_of(package, [name]) == [path]
        assert lookup.paths_of(package, ["no_such_type", name]) == [path]


def test_the_types_of_a_configuration_are_read_at_any_depth(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"model_type": "outer", "architectures": ["OuterModel"], "thinker_config": {"model_type": "middle", '
        '"text_config": {"model_type": "inner_text"}, "plain": {"size": 3}}}'
    )
    found = target.read_model(tmp_path / "config.json")
    assert found.names == ("outer", "middle", "inner_text", "OuterModel")


def test_what_has_no_overlay_names_those_that_have(tmp_path: Path) -> None:
    catalog.load.cache_clear()
    site, bundle = make_site(tmp_path / "site"), make_bundle(tmp_path / "bundle")
    environment = lookup.environment_of(site / "transformers", bundle)
    with pytest.raises(UnsupportedError, match="there is no overlay for 'bart'") as caught:
        lookup.pairs(environment, ["bart"])
    assert ", ".join(sorted(STOCK)) in caught.value.remedy
    (one,) = lookup.pairs(environment, ["one"])
    assert (one.installed, one.base, one.origin) == ("stock", STOCK["one"], "bundle")
    operations.install(Options(site_packages=site, bundle=bundle), "1.0")
    (again,) = lookup.pairs(lookup.environment_of(site / "transformers", bundle), ["one"])
    assert (again.installed, again.base, again.overlay) == ("overlay", one.base, one.overlay)
