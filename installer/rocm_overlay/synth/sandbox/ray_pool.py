"""The same servers as Ray actors, for more than one machine (`executor=ray`)."""

from __future__ import annotations

from typing import Any

from .pool import ProcessPool, Server, Setup


class _Remote:
    """A server inside an actor, with the interface of one in this process."""

    def __init__(self, setup: Setup) -> None:
        import ray

        self._ray: Any = ray
        self._actor: Any = self._ray.remote(num_cpus=1)(Server).remote(setup)

    def start(self) -> None:
        """Start the server inside the actor."""
        self._ray.get(self._actor.start.remote())

    def ask(self, job: dict[str, Any]) -> dict[str, Any]:
        """Run a job on the actor; one that died is an answer, too."""
        try:
            answer: dict[str, Any] = self._ray.get(self._actor.ask.remote(job))
        except self._ray.exceptions.RayActorError as error:
            return {"ok": False, "category": "crash", "message": f"the Ray actor died: {type(error).__name__}"}
        return answer

    def close(self) -> None:
        """End the server and the actor."""
        self._ray.get(self._actor.close.remote())
        self._ray.kill(self._actor)


class RayPool(ProcessPool):
    """Joins the cluster that RAY_ADDRESS names, or starts one on this machine."""

    def _make(self) -> Any:
        return _Remote(self.setup)

    def __post_init__(self) -> None:
        import ray

        self._started = not ray.is_initialized()
        if self._started:
            ray.init(num_cpus=None if self._address() else self.workers, include_dashboard=False, log_to_driver=False)
        super().__post_init__()

    @staticmethod
    def _address() -> str | None:
        import os

        return os.environ.get("RAY_ADDRESS")

    def close(self) -> None:
        """End the actors, and the cluster where this started it."""
        super().close()
        if self._started:
            import ray

            ray.shutdown()
