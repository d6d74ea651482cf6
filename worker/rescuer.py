"""One thread per worker publishes what is due, and looks for what got lost: leases that ran out, vanished messages."""

import random
import threading
import time
from collections.abc import Callable

from celery import Celery
from celery.utils.log import get_logger

import db.rescue
from db.session import Ledger
from worker import metrics
from worker.dispatch import dispatch
from worker.embedded import revive_redis
from worker.patience import Patience
from worker.settings import Settings

log = get_logger(__name__)

SHORTEST_PAUSE_SECONDS = 0.1
"""Shards that end within so long share a pass."""


class Rescuer:
    """Publishes when it is rung, and rescues at intervals until the service stops.

    After an outage of the database every lease may have run out while its worker waits to go on: heartbeats come
    first, and leases are taken back when `settle_seconds` have passed.
    """

    def __init__(
        self,
        app: Celery,
        ledger: Ledger,
        settings: Settings,
        database: Patience,
        broker: Patience,
        stopping: threading.Event,
    ) -> None:
        self._app = app
        self._ledger = ledger
        self._settings = settings
        self._database = database
        self._broker = broker
        self._stopping = stopping
        self._settle_seconds = 3 * settings.heartbeat_seconds
        self._rung = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="rescuer", daemon=True)

    def start(self) -> None:
        """Start the thread; it ends with the service."""
        self._thread.start()

    def ring(self) -> None:
        """Publish soon what is due: a shard has ended."""
        self._rung.set()

    def finish(self, seconds: float) -> None:
        """Wait for the last pass, once the service is stopping."""
        self._rung.set()
        self._thread.join(seconds)

    def rescue_pass(self) -> None:
        """Reopen the shards whose lease ran out.

        Raises:
            DatabaseUnreachableError: the ledger is away.
        """
        if self._database.seconds_since_outage() < self._settle_seconds:
            return
        if rescued := db.rescue.rescue(self._ledger):
            metrics.RESCUED.inc(rescued)
            log.warning("took back %d shards whose worker is silent", rescued)

    def _loop(self) -> None:
        next_rescue = 0.0
        while True:
            is_last = self._stopping.is_set()
            self._rung.clear()
            if time.monotonic() >= next_rescue:
                # Not all workers at the same moment.
                next_rescue = time.monotonic() + self._settings.rescue_seconds * random.uniform(0.8, 1.2)
                self._safely(self.rescue_pass)
            self._safely(self._dispatch)
            if is_last:
                return
            self._stopping.wait(SHORTEST_PAUSE_SECONDS)
            self._rung.wait(max(0.0, next_rescue - time.monotonic()))

    def _dispatch(self) -> None:
        sent = self._broker.attempt(lambda: dispatch(self._app, self._ledger, self._settings))
        if sent is None and self._settings.broker_is_embedded and not self._stopping.is_set():
            revive_redis(self._settings)

    def _safely(self, duty: Callable[[], object]) -> None:
        try:
            self._database.attempt(duty)
        except Exception:
            log.exception("a rescue pass failed")
