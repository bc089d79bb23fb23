"""The parity matrix: every architecture with an overlay for the installed release, against stock, on each tier.

    python -m tests.verify.matrix --write      # writes docs/parity.md
    python -m tests.verify.matrix --check      # exit 1 where the file says something else than a run does

Columns: toggles off (every bit), torch tier, eager tier, and a double of aiter on a fake gfx942 (bf16). Models are
small, with seeded weights; what a cell says does not depend on the machine.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
from rocm_overlay.install import catalog
from rocm_overlay.verify.cases import CASES, Outputs
from rocm_overlay.verify.compare import difference, judge
from rocm_overlay.verify.inputs import Inputs, kind_of
from rocm_overlay.verify.models import model_class, randomise
from rocm_overlay.verify.tolerances import tolerance

import amd_ops
from examples.tiny_models import _TINY, _TINY_EXTRA
from tests.doubles.aiter import fake_aiter
from tests.parity.twins import load_twin

DOC = Path(__file__).resolve().parents[2] / "docs" / "parity.md"
ON = {"use_fused_projections": 1, "use_optimized_ops": 1, "use_aiter_attention": 1, "use_aiter_gemm": 1}
NAMES = ("forward", "prefill", "decode", "padded", "padded-encoder", "greedy", "generate", "training-step")
COLUMNS = ("off", "torch tier", "eager tier", "aiter double")

# Sizes that belong to a kind of configuration; a class that does not know a name keeps it as an attribute.
EXPERTS = {"num_local_experts": 4, "num_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
           "moe_intermediate_size": 32, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}  # fmt: skip
SPARE = {"q_lora_rank": 24, "kv_lora_rank": 16, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 32,
         "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "encoder_layers": 2, "decoder_layers": 2,
         "encoder_ffn_dim": 96, "decoder_ffn_dim": 96, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
         "image_size": 32, "patch_size": 8, "n_embd": 64, "n_head": 4, "n_layer": 2, "word_embed_proj_dim": 64,
         "ffn_dim": 96, "embedding_size": 64}  # fmt: skip


def architectures() -> dict[str, catalog.FileEntry]:
    """Return the overlays made for the installed release by model type."""
    release = transformers.__version__
    entries = [entry for line in catalog.lines() for entry in catalog.load(line).files]
    return {entry.model: entry for entry in sorted(entries, key=lambda e: e.model) if release in entry.releases}


def small_config(model: str) -> Any:
    """Return a small configuration of a model type. Raises LookupError for one that is no model of its own."""
    if model not in transformers.CONFIG_MAPPING:
        raise LookupError("no configuration of this name")
    config_class = transformers.CONFIG_MAPPING[model]
    default = config_class()
    for part in ("text_config", "vision_config"):
        if getattr(default, part, None) is not None:
            raise LookupError("a composite of models that are built here one by one")
    values: dict[str, Any] = {**_TINY, **_TINY_EXTRA.get(model, {"head_dim": 16})}
    values.update({name: value for name, value in {**EXPERTS, **SPARE}.items() if hasattr(default, name)})
    known = {name: value for name, value in values.items() if hasattr(default, name) or name in ("pad_token_id",)}
    # Dropout in the training step would draw numbers in another order where two calls became one.
    known.update({name: 0.0 for name in vars(default) if "dropout" in name or name.endswith("_pdrop")})
    return config_class(**known)


class Pair:
    """A stock model and its overlaid twin with equal weights."""

    def __init__(self, model: str, dtype: torch.dtype) -> None:
        entry = architectures()[model]
        config = small_config(model)
        try:
            stock_class = model_class(config)
            self.stock = _made(stock_class, config)
            randomise(self.stock, 0)
            self.stock = self.stock.to(dtype).eval()
            self.inputs = Inputs.for_model(self.stock, seed=7)
        except Exception as error:  # stock's own code, before any of ours
            raise LookupError(f"stock at this size: {type(error).__name__}") from error
        self.kind = kind_of(self.stock)
        module = _twin(entry)
        if not hasattr(module, stock_class.__name__):
            raise LookupError(f"{stock_class.__name__} is in another file")
        self.overlay = _made(getattr(module, stock_class.__name__), config).to(dtype).eval()
        self.overlay.load_state_dict(self.stock.state_dict())

    def cases(self) -> Iterator[tuple[str, Callable[[Any, Inputs], Outputs]]]:
        """The cases of the matrix that this kind of model has."""
        for name in NAMES:
            if self.kind in CASES[name].kinds:
                yield name, CASES[name].run


def _made(cls: Any, config: Any) -> Any:
    return cls._from_config(config, attn_implementation="eager")


def _twin(entry: catalog.FileEntry) -> Any:
    importlib.import_module("transformers." + entry.path.removesuffix(".py").replace("/", "."))
    return load_twin(entry.model, entry.overlay_bytes(), "matrix")


def _column(pair: Pair, name: str, dtype: str, settings: dict[str, Any]) -> str:
    """Run every case under the settings and return the cell."""
    done, deviating = 0, []
    amd_ops.reset_counters()
    for case, run in pair.cases():
        if name == "aiter double" and CASES[case].training:
            continue
        try:
            want = run(pair.stock, pair.inputs)
        except Exception:  # noqa: BLE001 - stock cannot run this case at this size
            continue
        done += 1
        try:
            with amd_ops.override(**settings):
                found = run(pair.overlay, pair.inputs)
        except Exception as error:  # noqa: BLE001 - stock ran it: that is a deviation
            deviating.append(f"{case} ({type(error).__name__}: {str(error)[:80]})")
            continue
        verdict = judge(want, found, tier=name.split()[0], dtype=dtype, bitwise=name == "off")
        if not verdict.ok and not (dtype != "float32" and _is_own_rounding(pair, case, want, found)):
            deviating.append(f"{case} ({verdict.worst.name} {verdict.worst.max_rel:.1e})")
    rows = amd_ops.report().as_dict()["ops"]
    tier = name.split()[0]
    ops = sum(any(t["tier"] == tier and t["calls"] for t in row["tiers"]) for row in rows)
    amd_ops.restore(pair.overlay)
    if deviating:
        return "**deviates**: " + ", ".join(deviating)
    if not done:
        return "no case"
    return f"equal, {done} cases" if name == "off" else f"within, {done} cases, {ops} ops"


def _is_own_rounding(pair: Pair, case: str, want: Outputs, found: Outputs) -> bool:
    """True when the result is no further from the same weights in fp32 than twice what stock's own bf16 is.

    Multipliers on the residual stream and experts chosen by a near tie make rounding count for more than the table
    allows, in stock as in ours.
    """
    exact_model = copy.deepcopy(pair.stock).float()
    exact = CASES[case].run(exact_model, pair.inputs)
    names = [name for name in want if want[name].is_floating_point() and not name.startswith("pads")]
    if any(want[name].shape != found[name].shape for name in names):
        return False
    own = max(difference(name, exact[name], want[name].float()).max_rel for name in names)
    ours = max(difference(name, exact[name], found[name].float()).max_rel for name in names)
    if ours <= 2 * own:
        return True
    return _has_experts(pair) and all(_few_positions(want[name], found[name]) for name in names)


def _has_experts(pair: Pair) -> bool:
    return any(
        "Expert" in type(module).__name__ or "Sparse" in type(module).__name__ for module in pair.stock.modules()
    )


def _few_positions(want: torch.Tensor, found: torch.Tensor) -> bool:
    """True when at most one position in eight is out of tolerance: there a near tie chose another expert."""
    a, b = (x.float().reshape(-1, x.shape[-1]) for x in (want, found))
    allowed = tolerance("aiter", "bfloat16", "value").relative * a.abs().max()
    outside = ((a - b).abs().amax(-1) > allowed).float().mean()
    return bool(outside <= 1 / 8)


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def row(model: str) -> list[str]:
    """Return the cells of a model."""
    cells = []
    for name in COLUMNS:
        aiter = name == "aiter double"
        dtype = "bfloat16" if aiter else "float32"
        tiers = {"torch tier": "torch,eager", "eager tier": "eager", "aiter double": "aiter,torch,eager"}.get(name)
        settings = {} if tiers is None else {**ON, "tiers": tiers}
        double: AbstractContextManager[Any] = fake_aiter("v0.1.20.post1", "gfx942", 304) if aiter else nullcontext()
        try:
            with _quiet(), double:
                cells.append(_column(Pair(model, getattr(torch, dtype)), name, dtype, settings))
        except LookupError as reason:
            return [f"not built: {reason}"] * len(COLUMNS)
    return cells


def line(model: str) -> str:
    """Return a model's line of the table."""
    return f"| {model} | " + " | ".join(row(model)) + " |"


def section() -> str:
    """Return the heading of the installed release."""
    return f"## transformers {transformers.__version__}"


def render() -> str:
    """Return the section of the installed release."""
    models = list(architectures())
    header = ["| model | " + " | ".join(COLUMNS) + " |", "|" + "---|" * (len(COLUMNS) + 1)]
    return "\n".join([section(), "", *header, *(line(model) for model in models), ""])


INTRO = """# Parity matrix

Small models with seeded weights, stock against overlaid code, eager attention. *equal*: every bit is that of stock.
*within*: every case is within the tolerance table of `overlay verify` (fp32; bf16 for aiter, which is a double that
runs on a CPU and is stricter than the real one; there also where it is no further from fp32 than twice stock's own
bf16, and for mixtures of experts where at most one position in eight is outside: a near tie chose another expert).
The number of ops says how many ran on that tier. Written by
`python -m tests.verify.matrix --write`, once per installed release; tests hold sampled rows to it.
"""


def merged(text: str, new: str) -> str:
    """Return the document with the section of one release replaced, sections in order of release."""
    parts = [part for part in text.split("\n## ") if part.startswith("transformers ")]
    name = new.splitlines()[0].removeprefix("## ")
    kept = {part.splitlines()[0]: part.rstrip("\n") for part in parts}
    kept[name] = new.removeprefix("## ").rstrip("\n")
    return INTRO + "".join(f"\n## {part}\n" for _, part in sorted(kept.items()))


def main() -> int:
    """Write or check the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--write", action="store_true")
    group.add_argument("--check", action="store_true")
    chosen = parser.parse_args()
    before = DOC.read_text(encoding="utf-8") if DOC.is_file() else ""
    after = merged(before, render())
    if chosen.write:
        DOC.write_text(after, encoding="utf-8")
    elif before != after:
        print(f"{DOC} is not what a run gives; write it anew with --write", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
