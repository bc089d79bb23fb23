"""Libraries of serving and training stacks, base images, and the calls of cuDNN that have a counterpart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from rocm_overlay.install.scan import table

from tests.install.support import Done

Overlay = Callable[..., Done]


@pytest.mark.parametrize(
    ("code", "id"),
    [
        ("import flashinfer", "flashinfer"),
        ("from sageattention import sageattn", "sageattention"),
        ("import deep_gemm", "deep-gemm"),
        ("from deep_ep import Buffer", "deep-ep"),
        ("import sgl_kernel", "sgl-kernel"),
        ("import modelopt.torch.quantization as mtq", "modelopt"),
        ("from causal_conv1d import causal_conv1d_fn", "causal-conv1d"),
        ("from mamba_ssm import Mamba2", "mamba-ssm"),
        ("import flash_attn_3", "flash-attn-3"),
        ("from flash_attn_interface import flash_attn_func", "flash-attn-3"),
        ("from flash_attn import flash_attn_func", "flash-attn"),
    ],
)
def test_python_libraries(tmp_path: Path, overlay: Overlay, code: str, id: str) -> None:
    (tmp_path / "serve.py").write_text(code + "\n")
    assert [one["id"] for one in overlay("scan", tmp_path, "--json").json["findings"]] == [id]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "line",
    [
        "FROM nvidia/cuda:12.4.1-devel-ubuntu22.04 AS base",
        "from --platform=linux/amd64 nvcr.io/nvidia/pytorch:24.05-py3",
        "FROM docker.io/nvidia/cuda:12.4.1-base",
    ],
)
def test_base_images(tmp_path: Path, overlay: Overlay, line: str) -> None:
    (tmp_path / "Dockerfile").write_text(f"# a comment about nvidia/cuda\n{line}\nRUN true\n")
    (found,) = overlay("scan", tmp_path, "--json").json["findings"]  # type: ignore[misc]
    assert (found["id"], found["line"]) == ("cuda-image", 2)
    (tmp_path / "Dockerfile").write_text("FROM rocm/pytorch:latest\n")
    assert overlay("scan", tmp_path).code == 0


def test_calls_of_cudnn_name_what_takes_their_place(tmp_path: Path, overlay: Overlay) -> None:
    (tmp_path / "a.cu").write_text("void f() { cudnnCreate(&h); cudnnConvolutionForward(h); cudnnNobodyKnows(h); }\n")
    done = overlay("scan", tmp_path, "--json")
    told = {one["text"]: one["replacement"] for one in done.json["findings"]}  # type: ignore[attr-defined]
    assert told == {
        "cudnnCreate": "miopenCreate",
        "cudnnConvolutionForward": "miopenConvolutionForward",
        "cudnnNobodyKnows": None,
    }
    assert "cudnn: cudnnConvolutionForward -> miopenConvolutionForward" in overlay("scan", tmp_path).out
    calls = next(one for one in table.entries() if one.id == "cudnn").calls
    assert all(old.startswith("cudnn") and new.startswith("miopen") for old, new in calls.items())
