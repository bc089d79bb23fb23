"""The same workers as actors of a Ray cluster: the one that RAY_ADDRESS names, or one started on this machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import TargetError
from .pool import Answer, Pool, Worker

Options = dict[str, Any]
_PATIENCE = 5.0  # seconds


class _Remote:
    """A worker inside an actor; an actor that died is replaced for the next job."""

    def __init__(self, make: Callable[[], Worker], options: Options) -> None:
        import ray

        self._ray: Any = ray
        self._make, self._options = make, options
        self._actor: Any = None

    def start(self) -> None:
        """Start the actor and the worker inside it."""
        self._actor = self._ray.remote(**self._options)(_Actor).remote(self._make)
        self._result(self._actor.start.remote())

    def ask(self, job: Any) -> Answer:
        """Do the job there."""
        if self._actor is None:
            self.start()
        try:
            answer: Answer = self._result(self._actor.ask.remote(job))
        except self._ray.exceptions.RayActorError as error:
            self._actor = None
            return {"ok": False, "category": "crash", "message": f"the Ray actor died: {type(error).__name__}"}
        return answer

    def _result(self, reference: Any) -> Any:
        """Wait; what the worker raised is raised here as itself."""
        found = self._ray.get(reference)
        if isinstance(found, _Raised):
            raise found.error()
        return found

    def close(self) -> None:
        """End the worker and the actor; one that is still busy is not waited for."""
        if self._actor is not None:
            self._ray.wait([self._actor.close.remote()], timeout=_PATIENCE)
            self._ray.kill(self._actor)


@dataclass(frozen=True)
class _Raised:
    """An exception in parts: those whose ``__init__`` takes more than ``args`` do not survive a pickle whole."""

    kind: type[Exception]
    arguments: tuple[Any, ...]
    attributes: dict[str, Any]

    def error(self) -> Exception:
        made = self.kind.__new__(self.kind, *self.arguments)
        made.__dict__.update(self.attributes)
        return made


class _Actor:
    """What lives on the node. Its worker is made there, so that nothing but the recipe travels."""

    def __init__(self, make: Callable[[], Worker]) -> None:
        self._worker = make()

    def start(self) -> Any:
        return _attempt(self._worker.start)

    def ask(self, job: Any) -> Any:
        return _attempt(self._worker.ask, job)

    def close(self) -> None:
        self._worker.close()


def _attempt(call: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return call(*arguments)
    except Exception as error:  # noqa: BLE001 - raised again where the answer is awaited
        return _Raised(type(error), error.args, vars(error))


def _join(ray: Any, workers: int | None) -> None:
    address = os.environ.get("RAY_ADDRESS")
    options = {} if address else {"address": "local", "num_cpus": workers}  # without one Ray joins what it finds here
    try:
        ray.init(include_dashboard=False, log_to_driver=False, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        place = f"the Ray cluster at {address}" if address else "a Ray cluster on this machine"
        message = f"{place} could not be {'joined' if address else 'started'}: {error}"
        raise TargetError("no-cluster", message, remedy="check RAY_ADDRESS and `ray status`") from None


class RayPool(Pool):
    """Actors in place of threads' own workers; joins the cluster, and ends it where it was started here."""

    def __init__(self, workers: int | None, make: Callable[[], Worker], *, whole: bool = False) -> None:
        import ray

        self._ray: Any = ray
        self._started = not ray.is_initialized()
        if self._started:
            _join(ray, workers)
        try:
            slots, options = self._slots(whole)
            count = min(workers or slots, slots) if whole else workers or slots
            super().__init__([_Remote(make, options) for _ in range(count)])
        except ModuleNotFoundError as error:
            self._end()
            message = f"a node of the Ray cluster has no {error.name}"
            remedy = "install transformers-rocm-overlay on every node, in the environment that Ray runs in"
            raise TargetError("bare-node", message, remedy=remedy) from None
        except BaseException:
            self._end()
            raise

    def _slots(self, whole: bool) -> tuple[int, Options]:
        """How many workers find room at once, and what each of them asks Ray for."""
        gpus = int(self._ray.cluster_resources().get("GPU", 0))
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if gpus:
            return gpus, {"num_gpus": 1, "num_cpus": 1}
        cores = [int(resources.get("CPU", 0)) for resources in nodes]
        if whole:  # a GPU-less node is one worker's alone
            return len(nodes), {"num_cpus": min(cores), "scheduling_strategy": "SPREAD"}
        return max(1, sum(cores)), {"num_cpus": 1, "scheduling_strategy": "SPREAD"}

    def close(self) -> None:
        """Drop what is queued; end the actors, and the cluster where this started it."""
        super().close()
        self._end()

    def _end(self) -> None:
        if self._started:
            self._ray.shutdown()
