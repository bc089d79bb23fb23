"""The embedded contract is the printed one, and torch registers exactly that."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.doubles.aiter import Faults, fake_aiter, make_schemas, versions
from tests.doubles.aiter import catalog as catalogs

FACTS = Path(__file__).resolve().parents[3] / "shared" / "facts" / "aiter_schemas.json"
ALL = list(make_schemas.VERSIONS)


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    if not FACTS.is_file():
        pytest.skip("the collected aiter schemas lie beside the repository only where it is developed")
    loaded: dict[str, Any] = json.loads(FACTS.read_text())
    return loaded


def test_every_tag_is_modelled() -> None:
    assert versions() == ALL


@pytest.mark.parametrize("version", ALL)
def test_embedded_data_equals_the_collected_schemas(version: str, facts: dict[str, Any]) -> None:
    embedded = json.loads((catalogs.SCHEMAS / f"{version}.json").read_text())
    assert embedded == make_schemas.build(facts, version)


@pytest.mark.parametrize("version", ["v0.1.9.post1", "v0.1.20.post1"])
def test_derivation_rule_gives_the_printed_schemas(version: str, facts: dict[str, Any]) -> None:
    compared = 0
    for name, module in make_schemas.OPS.items():
        entry = make_schemas.signature_at(facts, f"{module}.{name}", version)
        if name.endswith("_impl") or entry is None:
            continue
        derived = make_schemas.derive_schema(name, entry) if make_schemas.is_torch_op(entry) else None
        assert derived == facts["dispatcher_schemas_observed"][version][name], name
        compared += 1
    assert compared >= 13


@pytest.mark.parametrize(
    ("version", "printed_at"), [("v0.1.9.post1",) * 2, ("v0.1.20.post1",) * 2, ("v0.1.22", "HEAD")]
)
def test_the_backwards_rule_gives_the_printed_schema(version: str, printed_at: str, facts: dict[str, Any]) -> None:
    """Of attention's backward ops one was printed; the others come from the sources by the same rule."""
    derived = json.loads(catalogs.BACKWARD.read_text())[version]["mha_bwd"]["schema"]
    assert derived == facts["dispatcher_schemas_observed"][printed_at]["mha_bwd"]


@pytest.mark.parametrize("version", ALL)
def test_torch_prints_the_embedded_schemas(version: str) -> None:
    with fake_aiter(version, attach=False) as double:
        double.load("aiter.tuned_gemm")
        for name, op in double.catalog.ops.items():
            assert str(getattr(torch.ops.aiter, name).default._schema) == op["schema"]


@pytest.mark.parametrize(
    ("version", "present", "absent"),
    [
        ("v0.1.5.post4", [], ["sink_size", "sink_ptr", "q_descale"]),
        ("v0.1.7.post3", ["q_descale"], ["sink_size", "sink_ptr"]),
        ("v0.1.9.post1", ["q_descale", "sink_size"], ["sink_ptr"]),
        ("v0.1.16", ["q_descale", "sink_size", "sink_ptr"], []),
        ("v0.1.20.post1", ["q_descale", "sink_size", "sink_ptr"], []),
        ("v0.1.22", ["q_descale", "sink_size", "sink_ptr"], []),
    ],
)
def test_arguments_appear_at_their_tag(version: str, present: list[str], absent: list[str]) -> None:
    schema = catalogs.load(version).ops["mha_fwd"]["schema"]
    assert all(f" {name}" in schema for name in present)
    assert not any(f" {name}" in schema for name in absent)


def test_ops_that_are_plain_python_in_some_tags() -> None:
    assert "rmsnorm2d_fwd" in catalogs.load("v0.1.9.post1").ops
    assert "rmsnorm2d_fwd" not in catalogs.load("v0.1.16").ops
    assert "aiter.ops.rmsnorm.rmsnorm2d_fwd" in catalogs.load("v0.1.16").functions
    assert "gemm_a16w16" not in catalogs.load("v0.1.5.post4").ops


@pytest.mark.parametrize("version", ALL)
def test_python_functions_have_the_real_signature(version: str) -> None:
    with fake_aiter(version, attach=False) as double:
        parameters = list(inspect.signature(double.load().flash_attn_func).parameters.values())
        names = [
            make_schemas.split_param(text)[0] for text in double.catalog.functions["aiter.ops.mha.flash_attn_func"]
        ]
        assert [parameter.name for parameter in parameters] == names
        assert parameters[6].default == ((-1, -1, 0) if "sink_size" in str(double.catalog.ops["mha_fwd"]) else (-1, -1))


def test_an_op_can_have_another_tags_schema() -> None:
    faults = Faults(schema_from={"mha_fwd": "v0.1.7.post3"})
    with fake_aiter("v0.1.20.post1", faults=faults, attach=False) as double:
        double.load()
        assert "sink_size" not in str(torch.ops.aiter.mha_fwd.default._schema)


def test_unknown_tag_names_the_modelled_ones() -> None:
    with pytest.raises(LookupError, match=r"v0\.2\.0; modelled: v0\.1\.5\.post4"), fake_aiter("v0.2.0"):
        pass
