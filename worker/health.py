"""Whether a worker process is well: what is wrong with it, only a restart mends."""

import threading
import time

from worker.service import Service

THREADS = ("engine", "writer", "heartbeats", "rescuer", "lookout")
STALL_SECONDS = 600.0
"""The engine has rows and makes no step for so long: it hangs."""


class Health:
    """Looks at the parts of a service; a backend that is away is no fault of the process, and not reported."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._steps = -1
        self._moved = time.monotonic()

    def problems(self) -> list[str]:
        """What is wrong, in words; nothing while the worker is starting or stopping."""
        if not self._service.is_started or self._service.is_draining:
            return []
        alive = {thread.name for thread in threading.enumerate()}
        problems = [f"the thread {name!r} has ended" for name in THREADS if name not in alive]
        return problems + (["the engine hangs in a step"] if self._engine_hangs() else [])

    def _engine_hangs(self) -> bool:
        stats = getattr(self._service.engines.engine, "stats", None)
        if stats is None:
            return False
        now = stats()
        if now.steps != self._steps or not now.running:
            self._steps, self._moved = now.steps, time.monotonic()
        return time.monotonic() - self._moved > STALL_SECONDS
