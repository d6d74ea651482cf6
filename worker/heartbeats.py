"""One thread extends the leases of all shards in work, and tells them when they are cancelled or lost."""

import threading
from enum import Enum
from typing import Protocol

from celery.utils.log import get_logger

import db.shards
from db.session import Ledger
from db.shards import Lease
from worker.patience import Patience

log = get_logger(__name__)


class Ending(Enum):
    """Why a shard stops before its rows are done."""

    CANCELLED = "its job was cancelled"
    LOST = "the lease was lost"
    HANDED_BACK = "handed back"


class Leased(Protocol):
    """A shard in work."""

    @property
    def lease(self) -> Lease: ...  # noqa: D102

    def end(self, why: Ending) -> None: ...  # noqa: D102


class Heartbeats:
    """The shards in work in this process, and the thread that keeps their leases alive."""

    def __init__(
        self,
        ledger: Ledger,
        patience: Patience,
        lease_seconds: float,
        interval_seconds: float,
        stopping: threading.Event,
    ) -> None:
        self._ledger = ledger
        self._patience = patience
        self._lease_seconds = lease_seconds
        self._interval_seconds = interval_seconds
        self._stopping = stopping
        self._running: set[Leased] = set()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._loop, name="heartbeats", daemon=True)

    def start(self) -> None:
        """Start the thread; it ends with the service."""
        self._thread.start()

    def add(self, run: Leased) -> None:
        """Keep a shard's lease alive from now on."""
        with self._changed:
            self._running.add(run)

    def remove(self, run: Leased) -> None:
        """Forget a shard, done or given up."""
        with self._changed:
            self._running.discard(run)
            self._changed.notify_all()

    def running(self) -> list[Leased]:
        """The shards in work."""
        with self._changed:
            return list(self._running)

    def wait_for_none(self, seconds: float) -> bool:
        """Wait until no shard is in work; False when there still is one after `seconds`."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._running, seconds)

    def beat(self) -> None:
        """One heartbeat for all shards in work."""
        runs = self.running()
        if not runs:
            return
        leases = [run.lease for run in runs]
        beat = self._patience.attempt(lambda: db.shards.heartbeat(self._ledger, leases, self._lease_seconds))
        if beat is None:
            return
        for run in runs:
            if run.lease in beat.lost:
                run.end(Ending.LOST)
            elif run.lease in beat.cancelled:
                run.end(Ending.CANCELLED)

    def _loop(self) -> None:
        while not self._stopping.wait(self._interval_seconds):
            try:
                self.beat()
            except Exception:
                log.exception("a heartbeat failed")
