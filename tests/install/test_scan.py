"""`overlay scan`: what is found in which files, what is left alone, and the three reports."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from rocm_overlay.errors import UsageError
from rocm_overlay.install.scan import scan, table
from rocm_overlay.install.scan.comments import without_comments
from rocm_overlay.install.scan.engine import kind_of

from tests.install.support import Done

SEED = {
    # The library mapping that the tool was asked to know: NVIDIA name -> (id, hipify does it, header, link)
    "cublas": (True, "cublas_v2.h", "-lhipblas -lrocblas"),
    "cublaslt": (True, "cublasLt.h", "-lhipblaslt"),
    "cusparse": (True, "cusparse.h", "-lhipsparse"),
    "cufft": (True, "cufft.h", "-lhipfft"),
    "curand": (True, "curand.h", "-lhiprand"),
    "nccl": (True, "nccl.h", "-lrccl"),
    "thrust": (True, None, "find_package(rocthrust), roc::rocthrust"),
    "cudnn": (False, "cudnn.h", "-lMIOpen"),
    "cutlass": (False, "cutlass/cutlass.h", "composable_kernel::device_operations"),
    "flash-attn": (False, None, None),
    "tensorrt": (False, "NvInfer.h", "-lmigraphx_c"),
}


def ids(folder: Path, name: str, text: str) -> list[str]:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return [one.entry.id for one in scan(file).findings]


@pytest.mark.parametrize("id", SEED)
def test_the_mapping_says_what_was_asked(id: str) -> None:
    entry = {one.id: one for one in table.entries()}[id]
    automatic, header, link = SEED[id]
    assert (entry.hipify == "automatic") == automatic
    assert (entry.header.old if entry.header else None) == header
    assert (entry.link.new if entry.link else None) == link


def test_the_table_is_whole() -> None:
    entries = table.entries()
    assert len({one.id for one in entries}) == len(entries) >= 30
    for one in entries:
        assert one.differs.endswith(".")
        assert one.sources, one.id
        assert one.amd
        assert one.patterns
        for kind, expressions in one.patterns.items():
            for expression in expressions:
                assert re.compile(expression).groups == 0, (one.id, kind, expression)


@pytest.mark.parametrize(
    ("line", "id"),
    [
        ("#include <cublas_v2.h>", "cublas"),
        ('# include "cublasLt.h"', "cublaslt"),
        ("#include <cusparse.h>", "cusparse"),
        ("#include <cufft.h>", "cufft"),
        ("#include <curand_kernel.h>", "curand"),
        ("#include <nccl.h>", "nccl"),
        ("#include <thrust/device_vector.h>", "thrust"),
        ("#include <cub/cub.cuh>", "cub"),
        ("#include <cudnn.h>", "cudnn"),
        ("#include <cutlass/gemm/device/gemm.h>", "cutlass"),
        ("#include <cute/tensor.hpp>", "cutlass"),
        ("#include <NvInfer.h>", "tensorrt"),
        ("#include <nvml.h>", "nvml"),
        ("#include <mma.h>", "wmma"),
        ("cublasSgemm(h);", "cublas"),
        ("cublasLtMatmul(h);", "cublaslt"),
        ("CUDNN_STATUS_SUCCESS;", "cudnn"),
        ("cudaMalloc(&p, 4);", "cuda-runtime"),
        ("curand_init(1, 2, 3, &s);", "curand"),
        ("nvcuda::wmma::fragment<A> a;", "wmma"),
        ("__pipeline_memcpy_async(a, b, 16);", "cooperative-async"),
        ('asm volatile("mma.sync.aligned.m16n8k16 {%0}, {%1};" : "=r"(a));', "inline-ptx"),
        ('asm("ldmatrix.sync.aligned.m8n8.x4 {%0};" : "=r"(a));', "inline-ptx"),
        ("v += __shfl_xor_sync(0xffffffff, v, 16);", "warp-size-32"),
        ("#define WARP_SIZE 32", "warp-size-32"),
        ("constexpr int kWarpSize = 32;", "warp-size-32"),
        ("int lane = threadIdx.x & 31;", "warp-size-32"),
        ("int warp = threadIdx.x >> 5;", "warp-size-32"),
        ("int lane = threadIdx.x % 32;", "warp-size-32"),
        ("int n = __popc(__ballot_sync(m, p));", "warp-size-32"),
        ("#if __CUDA_ARCH__ >= 800", "cuda-arch-guards"),
    ],
)
def test_sources(tmp_path: Path, line: str, id: str) -> None:
    assert ids(tmp_path, "a.cu", f"int x;\n{line}\n") == [id]
    found = scan(tmp_path / "a.cu").findings[0]
    assert found.line == 2
    assert line[found.column - 1 :].startswith(found.text.split("(")[0][:4])


@pytest.mark.parametrize(
    ("line", "id"),
    [
        ("import pynvml", "nvml"),
        ("import os, pynvml", "nvml"),
        ("from flash_attn import flash_attn_func", "flash-attn"),
        ("    import flash_attn.layers", "flash-attn"),
        ("import tensorrt as trt", "tensorrt"),
        ("import torch_tensorrt", "tensorrt"),
        ("import cutlass", "cutlass"),
        ("from transformer_engine import pytorch", "transformer-engine"),
        ("subprocess.run(['nvidia-smi', '-L'])", "nvidia-smi"),
        ("torch.cuda.get_device_capability()", "cuda-arch-guards"),
        ("x = tl.inline_asm_elementwise('...', '=r', [a], tl.int32, True, 1)", "inline-ptx"),
        ("from cuda import cudart", "cuda-python"),
        ("from nvidia.dali import pipeline_def", "dali"),
    ],
)
def test_python(tmp_path: Path, line: str, id: str) -> None:
    assert ids(tmp_path, "a.py", f"{line}\n") == [id]


@pytest.mark.parametrize(
    ("name", "line", "id"),
    [
        ("requirements.txt", "flash-attn>=2.5", "flash-attn"),
        ("requirements-dev.txt", "nvidia-nccl-cu12==2.20", "nccl"),
        ("pyproject.toml", 'dependencies = ["torch", "tensorrt"]', "tensorrt"),
        ("setup.py", 'install_requires=["pynvml"]', "nvml"),
        ("requirements.txt", "torch==2.4.0+cu121", "torch-cuda-wheel"),
        ("requirements.txt", "--extra-index-url https://download.pytorch.org/whl/cu124", "torch-cuda-wheel"),
        ("requirements.txt", "cupy-cuda12x", "cupy"),
        ("CMakeLists.txt", "find_package(CUDAToolkit REQUIRED)", "cuda-build"),
        ("CMakeLists.txt", "target_link_libraries(x PRIVATE CUDA::cublas)", "cublas"),
        ("Makefile", "LIBS = -lcufft", "cufft"),
        ("CMakeLists.txt", "project(x LANGUAGES CXX CUDA)", "cuda-build"),
        ("setup.py", 'libraries=["cudnn"]', "cudnn"),
        ("Dockerfile", "RUN nvidia-smi", "nvidia-smi"),
        ("build.sh", "nvcc -o x x.cu", "cuda-build"),
    ],
)
def test_build_and_requirement_files(tmp_path: Path, name: str, line: str, id: str) -> None:
    assert ids(tmp_path, name, f"{line}\n") == [id]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.cu", '// cublasCreate(&h);\n/* #include <cudnn.h>\n   cudnnCreate(&h); */\nint x; // asm("mov.u32")\n'),
        ("a.cu", "int cublas_like = 1; my_cudaMalloc(); hipblasCreate(&h); __shfl_xor(v, 16); warpSize;\n"),
        ("a.cu", 'asm volatile("s_waitcnt vmcnt(0)");\nint y = 32;\n'),
        ("a.py", '"""import pynvml\n\nimport tensorrt\n"""\nimport torch  # import pynvml\nx = 1\n'),
        ("a.py", "import cupyx_like\nimport flash_attnx\nfrom mycuda import x\nname = 'import pynvml'\n"),
        ("requirements.txt", "# flash-attn\ntorch>=2.4\nnot-flash-attn-like\n"),
        ("CMakeLists.txt", "# find_package(CUDA)\nproject(x LANGUAGES CXX HIP)\n"),
        ("notes.md", "flash-attn and cuDNN\n"),
    ],
)
def test_what_is_no_use_of_a_library(tmp_path: Path, name: str, text: str) -> None:
    assert ids(tmp_path, name, text) == []


def test_comments_keep_every_position() -> None:
    text = 'a /* b\nc */ d "// no" // e\nf'
    blank = without_comments(text, "c")
    assert len(blank) == len(text)
    assert blank.count("\n") == text.count("\n")
    assert '"// no"' in blank
    assert "e" not in blank.split("\n")[1]
    assert without_comments('x = """keep"""  # go\n', "python").startswith('x = """keep"""')


def test_the_short_cut_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names, import lines and include lines are looked at first; what they rule out is nowhere in the text."""
    from rocm_overlay.install.scan import engine

    lines = ["#include <cub/cub.cuh>", "x = nvcuda::wmma::fragment; thrust::cuda::par", "cudaMalloc(cudnnCreate)"]
    lines += [
        "import os, pynvml",
        "from flash_attn import a",
        "::cublasCreate(h)",
        "a::cufftPlan1d",
        "  import\ttensorrt",
    ]
    text = "\n".join(lines)
    for kind in (kind_of(Path("a.cu")), kind_of(Path("a.py"))):
        assert kind is not None
        short = [(one.entry.id, one.line) for one in engine.look("a", text, kind)]
        with monkeypatch.context() as patch:
            patch.setattr(engine, "_DIGESTS", {})
            assert [(one.entry.id, one.line) for one in engine.look("a", text, kind)] == short
        assert len(short) >= 5


def test_an_ignore_mark(tmp_path: Path) -> None:
    assert ids(tmp_path, "a.py", "import pynvml  # overlay-scan: ignore\nimport tensorrt\n") == ["tensorrt"]


def tree(folder: Path) -> Path:
    for name, text in {
        "src/a.cu": "#include <cublas_v2.h>\n", "third_party/b.cu": "#include <cudnn.h>\n",
        ".git/c.cu": "#include <cudnn.h>\n",
        "env/pyvenv.cfg": "", "env/lib/d.py": "import pynvml\n", "node_modules/e.cu": "#include <cudnn.h>\n",
    }.items():  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "bin.cu").write_bytes(b"\x7fELF\0\0#include <cudnn.h>\n")
    with (folder / "big.cu").open("wb") as file:
        file.truncate(2_000_001)
    return folder


def test_folders_binaries_big_files_and_exclude(tmp_path: Path) -> None:
    seen: list[int] = []
    found = scan(tree(tmp_path), progress=seen.append)
    assert [(one.path, one.entry.id) for one in found.findings] == [
        ("src/a.cu", "cublas"),
        ("third_party/b.cu", "cudnn"),
    ]
    assert dict(found.skipped) == {"bin.cu": "binary", "big.cu": "larger than 2000000 bytes"}
    assert (found.files, seen, found.code) == (2, [1, 2], 1)
    for pattern in ("third_party", "third_party/", "third_party/*", "*/b.cu"):
        assert scan(tmp_path, [pattern]).code == 0, pattern


def test_odd_names_and_bytes(tmp_path: Path) -> None:
    import os

    name = os.fsencode(str(tmp_path)) + b"/\xff.py"
    with open(name, "wb") as file:
        file.write(b"# \xff\nimport pynvml\r\n")
    assert [(one.entry.id, one.line) for one in scan(tmp_path).findings] == [("nvml", 2)]


def test_a_path_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no such file"):
        scan(tmp_path / "nowhere")
    assert kind_of(Path("a.png")) is None


def test_exit_codes_and_reports(tmp_path: Path, overlay: Callable[..., Done]) -> None:
    tree(tmp_path)
    done = overlay("scan", tmp_path)
    assert done.code == 1
    assert "third_party/b.cu:1:11: cudnn: cudnn.h" in done.out
    assert "header: cublas_v2.h -> hipblas/hipblas.h" in done.out
    assert "bin.cu was not looked at: binary" in done.err
    assert overlay("scan", tmp_path, "--exclude", "third_party").code == 0
    body = overlay("scan", tmp_path, "--json").json
    assert [one["id"] for one in body["libraries"]] == ["cudnn", "cublas"]  # type: ignore[index, attr-defined]
    assert overlay("scan", tmp_path, "--format", "json").json == body
    assert overlay("scan", tmp_path, "--json", "--format", "sarif").code == 2


def test_sarif(tmp_path: Path, overlay: Callable[..., Done]) -> None:
    log = json.loads(overlay("scan", tree(tmp_path), "--format", "sarif").out)
    assert (log["version"], len(log["runs"])) == ("2.1.0", 1)
    run = log["runs"][0]
    rules = run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == ["cublas", "cudnn"]
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["level"] == {"cudnn": "error", "cublas": "note"}[result["ruleId"]]
        place = result["locations"][0]["physicalLocation"]
        assert place["region"]["startLine"] >= 1
        assert (tmp_path / place["artifactLocation"]["uri"]).is_file()
