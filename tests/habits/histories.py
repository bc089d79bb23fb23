"""A state machine of what programs do to a model between forwards: stock and ours are treated alike, step by step.

The model is llama, qwen3 or mixtral; ours is the overlaid one, the stock classes kernelized, or (in bfloat16, on the
double of aiter) the overlaid one with shuffled weights. After every step both are run in one of several ways: equal
outputs, equal gradients, and as many calls of whatever was touched, are right.
"""

from __future__ import annotations

import copy
import functools
import gc
import pickle
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from peft import LoraConfig
from peft.tuners.lora import LoraModel
from torch import nn
from transformers import DynamicCache, StaticCache

import amd_ops
from amd_ops.backends import shuffled
from amd_ops.weights import packing
from tests.doubles.aiter import fake_aiter
from tests.habits.touches import (
    WAYS,
    Seen,
    attribute,
    class_call,
    class_forward,
    global_hook,
    parametrized,
    wrapped_class_forward,
    wrapt_class_forward,
)
from tests.habits.writes import WRITES
from tests.parity import twins

ON: dict[str, Any] = {"use_aiter_attention": 1, "use_optimized_ops": 1, "use_fused_projections": 1}
TOGGLES: dict[str, dict[str, Any]] = {
    "all": ON,
    "off": {},
    "with GEMM": {**ON, "use_aiter_gemm": 1},
    "fusion alone": {"use_fused_projections": 1},
    "without fusion": {**ON, "use_fused_projections": 0},
    "eager tier": {**ON, "tiers": "eager"},
}
SHUFFLED = {**ON, "use_aiter_gemm": 1, "use_preshuffle": 1, "preshuffle_m_thresh": 1}
ROUTES = ("overlaid", "overlaid", "kernelized", "shuffled")
IDS = torch.randint(5, 100, (2, 7), generator=torch.Generator().manual_seed(3))
COPIES = ("deepcopy", "pickle")  # a rule of their own: it goes on with the copy or with the original
# Adapters have rules of their own; a sharded model is another one for good; transposed weights have no flat view.
LASTING = ("LoRA merged", "DDP step", "FSDP2 step", "transposed memory")
HOWS = [how for how in WRITES if how not in COPIES + LASTING]
IN_PLACE = HOWS[: HOWS.index("load_state_dict")]
OF_STORAGES = ("storage copy_", "resize_(0) and back")
OF_CLASSES = (class_forward, wrapped_class_forward, wrapt_class_forward, class_call)
MOST_TOUCHES = 3
FACTOR = 1.25
"""Of a touch. Three that double every Linear would leave gradients that are nothing but rounding, in stock, too."""
REACHED: Counter[str] = Counter()
"""What the histories did, so that a machine that does little is noticed."""

seeds = st.integers(1, 1000)


@functools.cache
def _base(architecture: str, dtype: str, layers: int) -> twins.Pair:
    sizes: dict[str, Any] = {"num_hidden_layers": layers}
    if dtype == "bfloat16":
        sizes |= {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    if architecture == "mixtral":  # with all experts in use none goes unseen, and no near tie of the router flips
        sizes["num_experts_per_tok"] = 4
    return twins.new_pair(architecture, dtype, **sizes)


def _logits(model: Any, **words: Any) -> list[torch.Tensor]:
    with torch.no_grad():
        return [model(IDS, **words).logits]


def _inference(model: Any) -> list[torch.Tensor]:
    with torch.inference_mode():
        return [model(IDS).logits]


def _gradients(model: Any) -> list[torch.Tensor]:
    embedded = model.get_input_embeddings()(IDS).detach().requires_grad_()
    model.zero_grad()
    logits = model(inputs_embeds=embedded).logits
    logits.float().square().mean().backward()
    found = [p.grad for _, p in sorted(model.named_parameters()) if p.grad is not None]
    model.zero_grad()
    assert embedded.grad is not None
    return [logits.detach(), embedded.grad, *found]


def _padded(model: Any) -> list[torch.Tensor]:
    mask = torch.ones_like(IDS)
    mask[0, :3] = 0
    return [_logits(model, attention_mask=mask)[0][mask.bool()]]


def _decode(model: Any, cache: Any) -> list[torch.Tensor]:
    found = []
    with torch.no_grad():
        for part, at in (
            (IDS[:, :5], torch.arange(5)),
            (IDS[:, 5:6], torch.tensor([5])),
            (IDS[:, 6:], torch.tensor([6])),
        ):
            found.append(model(part, past_key_values=cache, use_cache=True, cache_position=at).logits)
    return found


FORMS: dict[str, Callable[[Any], list[torch.Tensor]]] = {
    "logits": _logits,
    "inference mode": _inference,
    "gradients": _gradients,
    "padded": _padded,
    "decode": lambda model: _decode(model, DynamicCache()),
    "static decode": lambda model: _decode(model, StaticCache(config=model.config, max_cache_len=16)),
}


class Histories(RuleBasedStateMachine):
    """Two models that go through the same."""

    def __init__(self) -> None:
        super().__init__()
        gc.collect()
        self.others = set(packing._wholes)
        self.open = ExitStack()
        self.seen = Seen(FACTOR)
        self.touched: list[ExitStack] = []
        self.adapters: list[LoraModel] = []
        self.merged = False
        self.form, self.toggles = "logits", ON
        self.pairs: list[tuple[Any, Any]] = []
        self.optimisers: list[torch.optim.Optimizer] = []
        self.trained: list[Any] = []
        self.stepped = False

    @initialize(
        architecture=st.sampled_from(["llama", "qwen3", "mixtral"]),
        route=st.sampled_from(ROUTES),
        layers=st.sampled_from([1, 2]),
        prepare=st.booleans(),
        hows=st.lists(st.sampled_from(IN_PLACE), min_size=1, max_size=2),
        seed=seeds,
    )
    def begin(self, architecture: str, route: str, layers: int, prepare: bool, hows: list[str], seed: int) -> None:
        """Make both models, run them once, and write to them: hypothesis leaves whole rules out of many histories."""
        self.route = route
        dtype = "bfloat16" if route == "shuffled" else "float32"
        if route == "shuffled":  # every layer and every doubling adds to the distance in bfloat16: touches only count
            layers, self.seen.factor = 1, 1
        base = _base(architecture, dtype, layers)
        stock = copy.deepcopy(base.stock)
        ours = copy.deepcopy(base.stock if route == "kernelized" else base.overlay)
        if route == "shuffled":
            self.open.enter_context(fake_aiter("v0.1.20.post1", "gfx942", 304, tolerate_violations=True))
            self.toggles = SHUFFLED
            # Where nothing asks for shuffled copies any more, they are freed: between two runs, too.
            self.open.enter_context(amd_ops.override(**SHUFFLED))
        if route == "kernelized":
            with amd_ops.override(**ON):
                amd_ops.kernelize_model(ours, mode="inference")
        self.pairs = [(stock, ours)]
        self.done(f"{route} {architecture}")
        if prepare or route == "shuffled":  # which without copies is no more than another dtype
            self.prepare()
        self.equal()
        self.write(hows, seed)

    def done(self, what: str) -> None:
        REACHED[what] += 1

    def both(self, change: Callable[[Any], Any]) -> None:
        """Do the same to both models."""
        for model in self.pairs[0]:
            change(model)

    # -- weights

    def write(self, hows: list[str], seed: int) -> None:
        for how in hows:
            if how in OF_STORAGES and not all(map(_alone, self.pairs[0][0].parameters())):
                continue  # stock's weights lie in a mapped file, in shared memory or in one vector
            with torch.no_grad():
                self.both(lambda model, how=how: WRITES[how](model, seed))
            self.equal()
            self.done(f"write {how}")

    @rule(hows=st.lists(st.sampled_from(IN_PLACE), min_size=1, max_size=3), seed=seeds)
    def write_in_place(self, hows: list[str], seed: int) -> None:
        self.write(hows, seed)

    @rule(hows=st.lists(st.sampled_from(HOWS[len(IN_PLACE) :]), min_size=1, max_size=2), seed=seeds)
    def exchange(self, hows: list[str], seed: int) -> None:
        self.write(hows, seed)

    @precondition(lambda self: not self.touched and not self.adapters)
    @rule(how=st.sampled_from(COPIES), follow=st.booleans())
    def copy(self, how: str, follow: bool) -> None:
        clone = copy.deepcopy if how == "deepcopy" else lambda model: pickle.loads(pickle.dumps(model))
        copies = tuple(map(clone, self.pairs[0]))
        self.pairs = [copies, self.pairs[0]] if follow else [self.pairs[0], copies]
        self.done(f"{how}, going on with the {'copy' if follow else 'original'}")

    @precondition(lambda self: self.route != "shuffled")  # in bfloat16 two sums of gradients soon part
    @rule(foreach=st.booleans(), fused=st.booleans())
    def train(self, foreach: bool, fused: bool) -> None:
        """Steps of one optimiser, which holds on to the parameters for as long as they are the model's."""
        models = self.pairs[0]
        self.both(lambda model: model.requires_grad_(True).train())
        now = [list(model.parameters()) for model in models]
        # A fused step refuses state of another dtype, and parameters that join in later, as a merged adapter's do.
        kind = [self.merged, *((id(one), one.dtype) for parameters in now for one in parameters)]
        if kind != self.trained:
            self.trained = kind
            options: dict[str, Any] = {"fused": True} if fused else {"foreach": foreach}
            self.optimisers = [torch.optim.SGD(one, lr=0.05, momentum=0.5, **options) for one in now]
        for model, on, optimiser in zip(models, ({}, self.toggles), self.optimisers, strict=True):
            optimiser.zero_grad()
            with amd_ops.override(**on):
                model(IDS, labels=IDS).loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()
        self.both(lambda model: model.eval())
        self.stepped = True
        self.done("train")

    def align(self) -> None:
        """Go on with stock's numbers: training enlarges every rounding, and what the step did has been compared."""
        stock, ours = (dict(model.named_parameters()) for model in self.pairs[0])
        first, second = (optimiser.state for optimiser in self.optimisers)
        with torch.no_grad():
            for name, parameter in stock.items():
                buffers = first[parameter].get("momentum_buffer"), second[ours[name]].get("momentum_buffer")
                for theirs, other in ((parameter, ours[name]), buffers):
                    if theirs is not None and not torch.equal(theirs, other):
                        self.close(other.double(), theirs.double())
                        other.copy_(theirs)

    @rule(what=st.sampled_from(["freeze", "unfreeze", "float64", "float32", "prepare", "restore"]))
    def turn(self, what: str) -> None:
        if what.endswith("freeze"):
            self.both(lambda model: model.requires_grad_(what == "unfreeze"))
        elif what.startswith("float") and self.route != "shuffled":
            self.both(lambda model: model.to(getattr(torch, what)))
        elif what == "prepare":
            self.prepare()
        elif what == "restore":
            amd_ops.restore(self.pairs[0][1])
        self.done(what)

    def prepare(self) -> None:
        with amd_ops.override(**self.toggles):
            report = amd_ops.prepare(self.pairs[0][1])
        self.done("prepare, with shuffled copies" if report.shuffling.copies else "prepare")

    @rule(seed=seeds, name=st.sampled_from(["q_proj", "v_proj", "o_proj"]))
    def delete(self, seed: int, name: str) -> None:
        """A parameter is deleted; the forward fails as stock's does; and one of the same name is put in its place."""
        errors = []
        for model, on in zip(self.pairs[0], ({}, self.toggles), strict=True):
            linear: Any = _plain(model.model.layers[0].self_attn, name)
            if linear is None:
                return
            kept = linear.weight.detach().clone()
            del linear.weight
            try:
                with amd_ops.override(**on):
                    _logits(model)
            except AttributeError as error:
                errors.append(str(error))
            noise = torch.randn(kept.shape, generator=torch.Generator().manual_seed(seed)) * 0.02
            linear.weight = nn.Parameter(kept + noise.to(kept.dtype))
        assert errors[0] == errors[1]
        self.done("delete a parameter")

    @rule(seed=seeds, name=st.sampled_from(["q_proj", "k_proj"]), bias=st.booleans())
    def replace(self, seed: int, name: str, bias: bool) -> None:
        for model in self.pairs[0]:
            owner = model.model.layers[0].self_attn
            old = _plain(owner, name)
            if old is None:
                return
            new = nn.Linear(old.in_features, old.out_features, bias=bias, dtype=old.weight.dtype)
            with torch.no_grad():
                for one in new.parameters():
                    one.copy_(torch.randn(one.shape, generator=torch.Generator().manual_seed(seed)) * 0.1)
            setattr(owner, name, new)
        self.done(f"replace a Linear{' by one with a bias' * bias}")

    @precondition(lambda self: not self.touched and not self.adapters)
    @rule(size=st.sampled_from([120, 136]))
    def resize(self, size: int) -> None:
        def resized(model: Any) -> None:
            torch.manual_seed(size)
            model.resize_token_embeddings(size, mean_resizing=False)

        self.both(resized)
        self.done("resize_token_embeddings")

    # -- adapters

    @precondition(lambda self: not self.adapters and not self.touched)
    @rule(seed=seeds)
    def adapt(self, seed: int) -> None:
        config = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "o_proj"], init_lora_weights=False)
        for model in self.pairs[0]:
            torch.manual_seed(seed)
            self.adapters.append(LoraModel(model, config, "default"))
            model.eval()
        self.merged = False
        self.done("adapter")

    @precondition(lambda self: self.adapters)
    @rule()
    def merge(self) -> None:
        for adapter in self.adapters:
            adapter.unmerge_adapter() if self.merged else adapter.merge_adapter()
        self.merged = not self.merged
        self.done("merge" if self.merged else "unmerge")

    @precondition(lambda self: self.adapters and not self.touched)
    @rule(merge=st.booleans())
    def unload(self, merge: bool) -> None:
        for adapter in self.adapters:
            adapter.merge_and_unload() if merge else adapter.unload()
        self.adapters = []
        self.done("merge_and_unload" if merge else "unload")

    # -- modules and functions

    @precondition(lambda self: len(self.touched) < MOST_TOUCHES)
    @rule(way=st.sampled_from(WAYS), places=st.lists(st.integers(0, 1000), min_size=1, max_size=2))
    def touch(self, way: Any, places: list[int]) -> None:
        for place in places:
            self.touch_one(way, place)
            self.equal()

    def touch_one(self, way: Any, place: int) -> None:
        """Touch a module below the first layer of both models."""
        stock, ours = (model.model.layers[0] for model in self.pairs[0])
        names = [name for name, module in stock.named_modules() if type(module).forward is not nn.Module.forward]
        name = names[1:][place % (len(names) - 1)]
        modules = stock.get_submodule(name), ours.get_submodule(name)
        if way is parametrized and (self.adapters or not isinstance(getattr(modules[0], "weight", None), nn.Parameter)):
            return
        same = type(modules[0]) is type(modules[1])
        # What is done to a class is done to its subclasses, and kernelizing makes one.
        if (way in OF_CLASSES and isinstance(modules[1], type(modules[0]))) or (way is global_hook and same):
            modules = modules[:1]
        self.enter(*(way(module, self.seen) for module in modules))
        self.done(f"touch {way.__name__}")

    @precondition(lambda self: len(self.touched) < MOST_TOUCHES)
    @rule(name=st.sampled_from(["silu", "linear", "scaled_dot_product_attention"]))
    def touch_torch(self, name: str) -> None:
        inner = getattr(F, name)
        self.enter(attribute(F, name, functools.wraps(inner)(lambda *a, **k: self.seen.twice(inner(*a, **k)))))
        self.done(f"touch F.{name}")

    def enter(self, *contexts: Any) -> None:
        stack = ExitStack()
        for context in contexts:
            stack.enter_context(context)
        self.touched.append(stack)

    @precondition(lambda self: self.touched)
    @rule()
    def untouch(self) -> None:
        self.touched.pop().close()
        self.done("untouch")

    # -- and what comes out

    @rule(form=st.sampled_from(sorted(FORMS)), toggles=st.sampled_from(sorted(TOGGLES)))
    def look(self, form: str, toggles: str) -> None:
        """From now on models are run in another way."""
        self.form = form
        if self.route != "shuffled":
            self.toggles = TOGGLES[toggles]
        self.done(f"{form}")

    @invariant()
    def equal(self) -> None:
        if self.route == "shuffled" and shuffled.any_kept():
            self.done("run with shuffled copies")
        for stock, ours in self.pairs:
            self.seen.calls = 0
            want = FORMS[self.form](stock)
            calls, self.seen.calls = self.seen.calls, 0
            with amd_ops.override(**self.toggles):
                found = FORMS[self.form](ours)
            assert self.seen.calls == calls
            if self.route == "shuffled":
                want, found = want[:1], found[:1]
            for one, other in zip(found, want, strict=True):
                assert one.dtype is other.dtype
                self.close(one.double(), other.double())
        if self.stepped:
            self.stepped = False
            self.align()

    def close(self, found: torch.Tensor, want: torch.Tensor) -> None:
        """In float32 no element may be off; in bfloat16 single ones are, by rounding alone, and the whole is judged."""
        if self.route == "shuffled":
            assert float((found - want).norm() / want.norm()) < 4e-2
        else:
            assert float((found - want).abs().max()) <= 1e-4 * max(1e-3, float(want.abs().max()))

    def teardown(self) -> None:
        while self.touched:
            self.touched.pop().close()
        for _, ours in self.pairs:
            amd_ops.restore(ours)
        self.optimisers, self.adapters, self.pairs = [], [], []
        self.open.close()
        gc.collect()  # adapters hold their model and are held by it
        assert not shuffled.any_kept()
        assert not set(packing._wholes) - self.others, "bytes of packed matrices outlive their model"
        super().teardown()


def _alone(parameter: torch.Tensor) -> bool:
    """Torch itself crashes where a storage is resized that a queue has moved to shared memory."""
    storage = parameter.untyped_storage()
    return bool(storage.resizable()) and not storage.is_shared() and storage.nbytes() == parameter.nbytes


def _plain(owner: Any, name: str) -> nn.Linear | None:
    """The Linear of this name, unless it is something else by now."""
    found = getattr(owner, name)
    return found if type(found) is nn.Linear and "parametrizations" not in found._modules else None
