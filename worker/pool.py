"""Celery's thread pool around the engine: it starts and stops the service, and owns the shutdown."""

import time
from typing import Any

from celery.concurrency.thread import TaskPool
from celery.worker import state

from worker.service import Service

ACK_SECONDS = 0.2
"""Time for the threads to acknowledge their messages once their shards are done."""


class EnginePool(TaskPool):  # type: ignore[misc]
    """Threads that each hold one shard and wait for the engine.

    SIGTERM gives the shards in work the grace period, then hands back what is left; SIGQUIT, or a second signal,
    hands back at once. A shard handed back is another worker's within seconds.
    """

    @property
    def service(self) -> Service:
        """The service of the app that this pool belongs to."""
        service: Service = self.app.service
        return service

    def on_start(self) -> None:
        """Start the service, before the first message is taken."""
        self.service.start()

    def on_stop(self) -> None:
        """Drain and stop. May be entered again from a signal handler while it runs."""
        is_cold = state.should_terminate is not None and state.should_terminate is not False
        self._end(0.0 if is_cold else self.service.settings.grace_seconds)

    def on_terminate(self) -> None:
        """Stop without a grace period."""
        self._end(0.0)

    def _end(self, grace_seconds: float) -> None:
        self.service.drain(grace_seconds)
        self.executor.shutdown(wait=False, cancel_futures=True)
        self.service.stop()
        deadline = time.monotonic() + ACK_SECONDS
        for thread in list(self.executor._threads):
            thread.join(max(0.0, deadline - time.monotonic()))

    def has_stuck_threads(self) -> bool:
        """True when a thread outlived the stop, for example inside a download."""
        return any(thread.is_alive() for thread in self.executor._threads)

    def terminate_job(self, pid: int, signal: Any = None) -> None:
        """Hand back every shard in work: Celery calls this once for each, and single jobs are cancelled in SQL."""
        self.service.hand_back_soon()

    def _get_info(self) -> dict[str, Any]:
        return {
            **super()._get_info(),
            "owner": self.service.owner,
            "shards": len(self.service.heartbeats.running()),
        }
