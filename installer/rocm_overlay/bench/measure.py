"""The measuring itself: needs torch and transformers, and of this project only `amd_ops` and the launch counter.

Clocks are ``time.perf_counter`` (monotonic: the wall clock may jump) with the device synchronised before each reading.
"""

from __future__ import annotations

import contextlib
import itertools
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from . import launches

Emit = Callable[..., None]
FIRST_TOKEN = 3
COPY_BYTES = 128 * 2**20


class Unfit(Exception):
    """The model cannot do the work that was asked for; the text says why."""


def size(job: dict[str, Any], emit: Emit) -> None:
    """Tell how many parameters and bytes a model has, without allocating them."""
    config = _config(job)
    with torch.device("meta"):
        model = _auto(job).from_config(config)
    parameters = {id(p): p for p in model.parameters()}.values()
    count = sum(p.numel() for p in parameters)
    width = getattr(torch, job["dtype"]).itemsize
    free, kind, name = _memory()
    emit(
        "size",
        parameters=count,
        bytes=count * width,
        largest=max((p.numel() for p in parameters), default=0) * width,
        layers=getattr(config.get_text_config(), "num_hidden_layers", None),
        free=free,
        device=kind,
        device_name=name,
    )


def materialise(job: dict[str, Any], emit: Emit) -> None:
    """Write seeded weights for a configuration, once, so that every cell measures the same model."""
    torch.manual_seed(job["seed"])
    model = _auto(job).from_config(_config(job), **{_dtype_keyword(): getattr(torch, job["dtype"])})
    model.save_pretrained(job["weights"])
    emit("materialised")


def cell(job: dict[str, Any], emit: Emit) -> None:
    """Measure one cell and emit its samples."""
    start = time.perf_counter()
    model = load(job)
    sync()
    emit("loaded", seconds=time.perf_counter() - start, overlay=_overlay_of(model), rss=_peak_rss())
    work = job["cell"]["work"]
    step = _STEPS[work["mode"]](model, job)
    _compile(model, work["compile"])
    first = step()
    emit("first", **first.times)
    for _ in range(job["warmup"]):
        step()
    _reset_peak()
    for _ in range(job["runs"]):
        wall = time.time() - time.perf_counter()
        done = step()
        emit("run", **done.times, clock_jump=abs(time.time() - time.perf_counter() - wall))
    emit("memory", **_memory_peak())
    emit("outcome", **first.outcome(job))
    if work["compile"] == "no":
        emit("launches", **_launches(model, job))
    emit("dispatch", **_dispatch())
    emit("bandwidth", bytes_per_s=_copy_bandwidth())


class Done:
    """What one run gave: times in seconds, and the values that parity is judged by."""

    def __init__(self, times: dict[str, Any], values: dict[str, torch.Tensor]) -> None:
        self.times = times
        self.values = values

    def outcome(self, job: dict[str, Any]) -> dict[str, Any]:
        """Save the values for the parent's comparison and name the file."""
        from safetensors.torch import save_file

        save_file({name: v.detach().float().cpu().contiguous() for name, v in self.values.items()}, job["values"])
        return {"path": job["values"]}


def _generate(model: Any, job: dict[str, Any]) -> Callable[[], Done]:
    """Greedy decoding by hand: one prefill (TTFT), then osl - 1 single steps (ITL); end tokens are ignored."""
    work = job["cell"]["work"]
    vocab = model.config.get_text_config().vocab_size
    ids = token_ids(vocab, work["batch"], work["isl"], job["seed"]).to(model.device)

    @torch.inference_mode()
    def run() -> Done:
        cache = cache_for(model, work)
        start_together()
        begin = time.perf_counter()
        out = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1, **positions(work, 0, work["isl"]))
        logits = out.logits[:, -1]
        token = logits.argmax(-1, keepdim=True)
        sync()
        stamps = [time.perf_counter()]
        tokens = [token]
        for index in range(work["osl"] - 1):
            position = positions(work, work["isl"] + index, 1)
            out = model(token, past_key_values=out.past_key_values, use_cache=True, **position)
            token = out.logits[:, -1].argmax(-1, keepdim=True)
            tokens.append(token)
            sync()
            stamps.append(time.perf_counter())
        steps = [after - before for before, after in itertools.pairwise(stamps)]
        times = {"ttft": stamps[0] - begin, "itl": steps, "e2e": stamps[-1] - begin}
        return Done(times, {"logits": logits, "tokens": torch.cat(tokens, 1)})

    return run


def _train(model: Any, job: dict[str, Any]) -> Callable[[], Done]:
    """One training step without an optimiser: forward, loss, backward."""
    work = job["cell"]["work"]
    vocab = model.config.get_text_config().vocab_size
    ids = token_ids(vocab, work["batch"], work["isl"], job["seed"]).to(model.device)
    model.train()

    def run() -> Done:
        model.zero_grad(set_to_none=True)
        sync()
        begin = time.perf_counter()
        loss = model(ids, labels=ids, use_cache=False).loss
        loss.backward()
        sync()
        e2e = time.perf_counter() - begin
        norm = torch.stack([p.grad.float().norm() for p in model.parameters() if p.grad is not None]).norm()
        return Done({"e2e": e2e}, {"loss": loss[None], "grad_norm": norm[None]})

    return run


def _forward(model: Any, job: dict[str, Any]) -> Callable[[], Done]:
    """One forward of an encoder or a vision model."""
    work = job["cell"]["work"]
    inputs = {name: value.to(model.device) for name, value in _encoder_inputs(model, work, job["seed"]).items()}

    @torch.inference_mode()
    def run() -> Done:
        start_together()
        begin = time.perf_counter()
        out = model(**inputs)
        sync()
        return Done({"e2e": time.perf_counter() - begin}, {"hidden": out[0]})

    return run


_STEPS: dict[str, Callable[[Any, dict[str, Any]], Callable[[], Done]]] = {
    "generate": _generate,
    "train": _train,
    "forward": _forward,
}


def _encoder_inputs(model: Any, work: dict[str, Any], seed: int) -> dict[str, torch.Tensor]:
    config = model.config
    if model.main_input_name == "pixel_values":
        side = config.image_size if isinstance(config.image_size, int) else config.image_size[0]
        shape = (work["batch"], getattr(config, "num_channels", 3), side, side)
        pixels = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        return {"pixel_values": pixels.to(model.dtype)}
    if model.main_input_name != "input_ids":
        raise Unfit(f"{type(model).__name__} takes {model.main_input_name}; input_ids and pixel_values can be made up")
    return {"input_ids": token_ids(config.vocab_size, work["batch"], work["isl"], seed)}


def token_ids(vocab: int, batch: int, length: int, seed: int) -> torch.Tensor:
    low = min(FIRST_TOKEN, vocab - 1)
    return torch.randint(low, vocab, (batch, length), generator=torch.Generator().manual_seed(seed))


def cache_for(model: Any, work: dict[str, Any]) -> Any:
    import transformers

    if work["cache"] == "dynamic":
        return transformers.DynamicCache()
    length = work["isl"] + work["osl"]
    return transformers.StaticCache(config=model.config, max_cache_len=length)


def positions(work: dict[str, Any], start: int, count: int) -> dict[str, torch.Tensor]:
    """A static cache has to be told where it is written to (transformers 4); a dynamic one knows."""
    if work["cache"] == "dynamic":
        return {}
    return {"cache_position": torch.arange(start, start + count, device="cuda" if torch.cuda.is_available() else "cpu")}


def _compile(model: Any, kind: str) -> None:
    if kind == "no":
        return
    mode = "reduce-overhead" if kind == "graph" else "default"
    if kind == "graph" and not torch.cuda.is_available():
        raise Unfit("--compile graph needs a GPU: CPU has no graphs to capture")
    model.forward = torch.compile(model.forward, mode=mode)


def _launches(model: Any, job: dict[str, Any]) -> dict[str, Any]:
    """Compute ops of one decode step (generate) or one forward, counted in the dispatcher."""
    work = job["cell"]["work"]
    if work["mode"] == "train":
        return {"unit": "training step", **launches.count(_STEPS["train"](model, job))}
    if work["mode"] == "forward":
        return {"unit": "forward", **launches.count(_STEPS["forward"](model, job))}
    vocab = model.config.get_text_config().vocab_size
    ids = token_ids(vocab, work["batch"], work["isl"], job["seed"]).to(model.device)
    with torch.inference_mode():
        cache = cache_for(model, work)
        model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1, **positions(work, 0, work["isl"]))
        one = positions(work, work["isl"], 1)
        counted = launches.count(lambda: model(ids[:, :1], past_key_values=cache, use_cache=True, **one))
    return {"unit": "decoded token", **counted}


def _dispatch() -> dict[str, Any]:
    amd_ops = sys.modules.get("amd_ops")
    return {"ops": amd_ops.report().as_dict()["ops"] if amd_ops is not None else []}


def _config(job: dict[str, Any]) -> Any:
    import transformers

    return transformers.AutoConfig.from_pretrained(job["model"], local_files_only=True)


def _auto(job: dict[str, Any]) -> Any:
    import transformers

    if job["mode"] == "forward":
        return transformers.AutoModel
    return transformers.AutoModelForCausalLM


def _dtype_keyword() -> str:
    import transformers

    # `dtype` took the place of `torch_dtype` in 4.56.
    release = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    return "dtype" if release >= (4, 56) else "torch_dtype"


def load(job: dict[str, Any]) -> Any:
    keywords = {_dtype_keyword(): getattr(torch, job["dtype"]), "attn_implementation": job["cell"]["work"]["attn"]}
    if job["cell"]["work"]["ranks"] > 1:
        # Joins the group that the environment names, and puts this rank's shards where they belong.
        return _auto(job).from_pretrained(job["weights"], local_files_only=True, tp_plan="auto", **keywords).eval()
    model = _auto(job).from_pretrained(job["weights"], local_files_only=True, **keywords)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def _overlay_of(model: Any) -> str | None:
    found = getattr(sys.modules[type(model).__module__], "__amd_overlay__", None)
    return found if isinstance(found, str) else None


def sync() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def start_together() -> None:
    """Wait for the device, and for all ranks: none of them is timed while it waits for another to begin."""
    sync()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def _memory() -> tuple[int, str, str]:
    """Free bytes where the model will live, the kind of device and its name."""
    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        return free, "cuda", torch.cuda.get_device_name()
    text = Path("/proc/meminfo").read_text(encoding="ascii")
    available = next(int(line.split()[1]) for line in text.splitlines() if line.startswith("MemAvailable"))
    return available * 1024, "cpu", cpu_name()


def cpu_name() -> str:
    """The processor's name as the kernel tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return "cpu"


def _peak_rss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _memory_peak() -> dict[str, int]:
    found = {"max_ram": _peak_rss()}
    if torch.cuda.is_available():
        found |= {
            "max_allocated": torch.cuda.max_memory_allocated(),
            "max_reserved": torch.cuda.max_memory_reserved(),
        }
    return found


def _copy_bandwidth() -> float:
    """Bytes per second read and written by a large copy: what this machine's memory gives at best."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    source = torch.ones(COPY_BYTES // 4, device=device)
    target = torch.empty_like(source)
    return max(_copies(source, target))


def _copies(source: torch.Tensor, target: torch.Tensor) -> Iterator[float]:
    for _ in range(8):
        sync()
        begin = time.perf_counter()
        target.copy_(source)
        sync()
        yield 2 * COPY_BYTES / (time.perf_counter() - begin)


TASKS: dict[str, Callable[[dict[str, Any], Emit], None]] = {"size": size, "materialise": materialise, "cell": cell}
