"""Plans: a decode step of a whole decoder as one list of calls with everything bound beforehand.

The loop of an overlaid model runs through what ``planned`` returns: its layers, or a stand-in for them that runs
the plan. A plan is made once per model and shape class. Before every forward everything that it was made from is looked
at (watch.py); what has changed makes a new plan, and what a plan cannot honour leaves the layers to themselves, with
the reason counted under ``decode_plan``. Nothing in a plan depends on what a cache or a mask holds.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Iterator
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from .. import modes, toggles
from ..dispatch import Site, capturing, complain, new_lock_after_fork
from ..forward.projections import ATTENTION_MARK
from ..modules import attention_is_torchs, gelu_is_torchs, linears_patched, original, silu_is_torchs
from ..ops.rope import is_rotate_half
from . import caches, steps
from .state import Calls, State
from .steps import Unplannable
from .turning import Attention
from .watch import Watch

_compiling = torch.compiler.is_dynamo_compiling
_add_to_each: Any = getattr(torch, "_foreach_add_", None)
_site = Site("decode_plan", "planned", lambda settings: False)
_lock = threading.RLock()
new_lock_after_fork(__name__)
_plans: weakref.WeakKeyDictionary[nn.Module, Plan] = weakref.WeakKeyDictionary()

WORDS = frozenset(
    """
    attention_mask position_embeddings position_ids past_key_values past_key_value cache cache_position use_cache
    """.split()  # noqa: SIM905 - a table of words reads better than a column of strings
)
"""What a layer may be given; any other word that is set asks for something that a plan does not know."""
_CACHE_WORDS = ("past_key_values", "past_key_value", "cache")
_NAMED = frozenset([*_CACHE_WORDS, "attention_mask", "position_embeddings", "cache_position"])
_MOST_CLASSES = 32


def forget() -> None:
    """Drop every plan: the next forward makes a new one."""
    with _lock:
        _plans.clear()


class Plan:
    """The plan of some layers: what they were read as, what is watched, and the steps of every shape class so far."""

    def __init__(self, layers: list[nn.Module]) -> None:
        self.settings = toggles.settings()
        self.layers = [steps.read(layer) for layer in layers]
        self.types = [getattr(layer, "attention_type", None) for layer in layers]
        self.tables = [one.tables for one in self.layers]
        self.tupled = self.layers[0].tupled
        chosen = [word for one in self.layers for word in one.choice]
        self.words, self.named = WORDS.union(chosen), _NAMED.union(chosen)
        if any(one.tupled is not self.tupled for one in self.layers):
            raise Unplannable("some layers return a tuple")
        self.uniform = len(set(self.types)) == len(set(self.tables)) == 1
        self.indices = [part.index for one in self.layers for part in one.parts.values() if _attends(part)]
        if self.indices != list(range(len(layers))):
            raise Unplannable("the layers' indices are not their places")
        watched = [module for one in self.layers for module in one.watched]
        numbers = [pair for one in self.layers for pair in one.numbers]
        if any(type(module).__call__ is not nn.Module.__call__ and not steps.checkpoints(module) for module in watched):
            raise Unplannable("a module has a call of its own")
        attentions = [module for one in self.layers for module in one.configured]
        attention, self.config = attentions[0], attentions[0].__dict__["config"]
        if any(module.__dict__["config"] is not self.config for module in attentions):
            raise Unplannable("the layers have several configurations")
        mark = steps.mark_of(attention, ATTENTION_MARK)
        assert mark is not None
        if not isinstance(
            mark[0], FunctionType
        ):  # transformers 5.0 to 5.15 makes a module of it for kernels of the Hub
            raise Unplannable("the rotation is an object, not the function of its file")
        self.rotation, self.globals = mark[0], mark[0].__globals__
        self.half = self.globals.get("rotate_half")
        if not is_rotate_half(self.half) or not original(self.rotation, self.rotation.__name__):
            raise Unplannable("the rotation is no longer that of its file")
        modal = [module for one in self.layers for module in one.modal]
        self.watch = Watch(layers, watched, numbers, modal, attentions, self._forget)
        for one in self.layers:  # the steps hold what they need, and that without keeping a module alive
            one.watched, one.numbers, one.modal, one.configured = [], [], [], []
            one.module = None  # type: ignore[assignment]
        self.classes: dict[Any, tuple[list[list[steps.Step]], Calls]] = {}
        self.dead = False

    def _forget(self) -> None:
        """A module is gone: so are its parameters, which nothing here may hold."""
        self.dead = True
        self.layers, self.classes = [], {}
        self.watch.forget()

    def changed(self, layers: list[Any]) -> str:
        """Return "" while ``layers`` are those that were read, and as they were."""
        if self.dead or toggles.settings() is not self.settings:
            return "a module was freed or the toggles changed"
        space = self.globals
        if space.get(self.rotation.__name__) is not self.rotation or space.get("rotate_half") is not self.half:
            return "the rotation was replaced in its module"
        if linears_patched() or not silu_is_torchs() or not gelu_is_torchs():
            return "a function of torch that the layers call was replaced"
        return self.watch.changed(layers)

    def attention(self) -> str:
        """Return "" where the model attends by transformers' own sdpa function."""
        name = self.config._attn_implementation
        if name != "sdpa":
            return f"the attention implementation is {name!r}, not sdpa"
        try:
            found = self.globals["ALL_ATTENTION_FUNCTIONS"][name]
        except KeyError:
            return "the model's attention functions are not transformers'"
        own = found is steps.stock_sdpa() and original(found, "sdpa_attention_forward")
        if not own or not attention_is_torchs():
            return "sdpa's function, or one of torch's that it calls, has been replaced"
        return ""

    def of(self, key: Any) -> tuple[list[list[steps.Step]], Calls]:
        """Return the steps per layer for a shape class, and their counters."""
        found = self.classes.get(key)
        if found is None:
            if len(self.classes) >= _MOST_CLASSES:
                self.classes.clear()
            calls = Calls()
            found = self.classes[key] = steps.compiled(self.layers, calls), calls
        return found


def _attends(part: object) -> bool:
    return isinstance(part, Attention)


def planned(model: nn.Module, layers: nn.ModuleList, count: int | None = None, *, each: bool = False) -> Iterable[Any]:
    """Return what the loop over ``layers[:count]`` of ``model`` runs through: the layers, or a stand-in for them.

    ``each`` says that the loop counts its turns; the stand-in then comes once per layer. Whatever it is called with,
    the result is that of the layer.

    Examples:
        >>> layers = nn.ModuleList([nn.Linear(2, 2)])
        >>> list(amd_ops.planned(nn.Module(), layers)) == list(layers)  # nothing to settle: the layers themselves
        True
    """
    stock: Any = layers if count is None else None
    if _compiling():
        return layers[:count] if stock is None else stock
    reason = _why_not(model)
    plan: Plan | str = reason or _plan_of(model, layers, count)
    stock = layers[:count] if stock is None and isinstance(plan, str) else stock
    if isinstance(plan, str):
        _site.declined(plan)
        return stock  # type: ignore[no-any-return]
    return _walk(plan, layers, each)


def _why_not(model: nn.Module) -> str:
    if torch.is_grad_enabled():
        return "gradients are enabled"
    if model.training:
        return "the model is in training mode"
    return modes.hidden()


def _plan_of(model: nn.Module, layers: nn.ModuleList, count: int | None) -> Plan | str:
    plan = _plans.get(model)
    listed = list(layers._modules.values())[:count]
    if plan is not None and not _changed(plan, listed):
        return plan.attention() or plan
    with _lock:
        _plans.pop(model, None)
        if toggles.on.preshuffle:
            return "shuffled weights are chosen call by call"
        if capturing():
            return "a stream is being captured and there is no plan yet"
        if not listed or type(layers) is not nn.ModuleList:
            return "the layers are not a list of modules"
        if None in listed:
            return "a layer is missing"
        try:
            made = Plan(listed)
        except Unplannable as why:
            return str(why)
        except Exception as error:  # noqa: BLE001 - of a release or an edit that nobody here has seen
            return _unforeseen(error)
        reason = made.changed(listed) or made.attention()
        if reason:
            return reason
        _plans[model] = made
        return made


def _unforeseen(error: Exception) -> str:
    """Return the reason in the report for an error before a plan has computed anything, and warn once: the layers run
    as in stock. AMD_OPS_STRICT=1 lets it through.
    """
    if toggles.settings().strict:
        raise error
    reason = f"raised {type(error).__name__}: {error}"[:200]
    complain(_site.name, _site.fast.name, reason)
    return reason


def _changed(plan: Plan, layers: list[Any]) -> str:
    try:
        return plan.changed(layers)
    except (RuntimeError, NotImplementedError):
        return "a parameter has no plain storage"


class Run:
    """Stands in for the layers of one forward: called with the first one's arguments, it runs them all, or each."""

    def __init__(self, plan: Plan, layers: nn.ModuleList, each: bool) -> None:
        self.plan, self.layers, self.each = plan, layers, each
        self.attention_type = plan.types[0]
        self.index = 0
        self.declined = False
        self.state: State | None = None
        self.steps: list[list[steps.Step]] = []
        self.calls: Calls | None = None

    def __call__(self, hidden: Tensor, *more: Any, **words: Any) -> Any:
        """Return the hidden states [B, 1, H] behind the layer, or behind all layers."""
        if self.index == 0:
            try:
                reason = "positional arguments" if more else self._start(hidden, words)
            except Exception as error:  # noqa: BLE001 - of a release or an edit that nobody here has seen
                reason = _unforeseen(error)
            if reason:
                self.declined = True
                _site.declined(reason)
                return self.layers[0](hidden, *more, **words)
        state = self.state
        assert state is not None
        assert self.calls is not None
        if not self.each:
            for layer in self.steps:
                for step in layer:
                    step(state)
        else:
            state.mask = words.get("attention_mask")
            state.cos, state.sin = words[self.plan.tables[self.index]]
            for step in self.steps[self.index]:
                step(state)
        if not self.each or self.index + 1 == len(self.steps):
            self._end(state)
        out = state.x.view(state.x.shape[0], 1, -1)
        return (out,) if self.plan.tupled else out

    def _start(self, hidden: Tensor, words: dict[str, Any]) -> str:
        """Return "" where the plan can run with these arguments, and get ready for it."""
        if type(hidden) is not Tensor or hidden.dim() != 3 or hidden.shape[1] != 1 or not hidden.is_contiguous():
            return "this is no decode step of one token"
        for word, value in words.items():
            if word not in self.plan.words and value is not None and value is not False:
                return f"the model passes {word!r}, which a plan does not know"
        mask, tables = words.get("attention_mask"), words.get(self.plan.tables[0])
        if mask is not None and (type(mask) is not Tensor or mask.dim() != 4):
            return "the mask is not a tensor [B, 1, 1, Sk]"
        if type(tables) is not tuple or len(tables) != 2 or type(tables[0]) is not Tensor or tables[0].dim() != 3:
            return "the position embeddings are not two tensors [B, 1, R]"
        if torch.is_autocast_enabled(hidden.device.type):
            return "autocast is on"
        cache: Any = next((words[word] for word in _CACHE_WORDS if words.get(word) is not None), None)
        kinds = [] if cache is None else caches.kinds(cache, len(self.plan.types))
        position = words.get("cache_position")
        layers = getattr(cache, "layers", None)
        reason = _misfit(layers or [], kinds, hidden, position)
        if reason:
            return reason
        key = (hidden.shape, hidden.dtype, hidden.device, mask is None, tables[0].dtype, tables[0].shape, *kinds)
        if key not in self.plan.classes and capturing():
            return "a stream is being captured and this shape has no plan yet"
        self.steps, self.calls = self.plan.of(key)
        rows = hidden.view(hidden.shape[0], -1)
        more = {word: value for word, value in words.items() if word not in self.plan.named}
        self.state = State(rows, rows, mask, *tables, cache, layers, kinds, position, more)
        return ""

    def _end(self, state: State) -> None:
        """Advance the static layers that count for themselves, all in one call, and count what was called."""
        counted = [
            layer.cumulative_length
            for layer, kind in zip(state.layers or (), state.kinds, strict=False)
            if kind == "static" and hasattr(layer, "cumulative_length")
        ]
        if _add_to_each is not None and counted:
            _add_to_each(counted, 1)
        else:
            for count in counted:
                count.add_(1)
        assert self.calls is not None
        self.calls.credit()
        _site.fast.calls += 1


def _misfit(layers: list[Any], kinds: list[str], hidden: Tensor, position: Any) -> str:
    """Return "" where the static ones of a cache's layers can be written at the positions that there are."""
    static = [layer for layer, kind in zip(layers, kinds, strict=False) if kind == "static"]
    if not static:
        return ""
    if position is None and not hasattr(static[0], "cumulative_length"):
        return "no cache_position was given"
    if position is not None and (type(position) is not Tensor or position.dim() != 1 or position.shape[0] != 1):
        return "cache_position is not one place"
    alike = {(one.keys.shape[0], one.keys.dtype, one.values.dtype, one.keys.device) for one in static}
    if alike != {(hidden.shape[0], hidden.dtype, hidden.dtype, hidden.device)}:
        return "the static cache is not of the hidden states' batch, dtype or device"
    return ""


def _walk(plan: Plan, layers: nn.ModuleList, each: bool) -> Iterator[Any]:
    """Yield the stand-in once, or once per layer; and the layers themselves from where it has declined."""
    run = Run(plan, layers, each or not plan.uniform)
    for index, kind in enumerate(plan.types):
        run.index, run.attention_type = index, kind
        yield run
        if run.declined:
            listed = list(layers._modules.values())
            yield from listed[1 : len(plan.types)]
            return
        if not run.each:
            return
