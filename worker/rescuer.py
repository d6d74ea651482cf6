"""One thread per worker looks for what got lost: leases that ran out, messages that vanished, jobs nobody announced."""

import random
import threading

from celery import Celery
from celery.utils.log import get_logger

import db.shards
from db.session import Ledger
from worker.dispatch import dispatch
from worker.patience import Patience
from worker.settings import Settings

log = get_logger(__name__)


def rescue_pass(app: Celery, ledger: Ledger, settings: Settings) -> int:
    """Reopen shards whose lease ran out, publish what is due, and return how many shards were published.

    Raises:
        BrokerUnreachableError: Redis is away.
        DatabaseUnreachableError: the ledger is away.
    """
    if rescued := db.shards.rescue(ledger):
        log.warning("took back %d shards whose worker is silent", rescued)
    return dispatch(app, ledger, settings)


class Rescuer:
    """Repeats the pass above until the service stops."""

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
        self._thread = threading.Thread(target=self._loop, name="rescuer", daemon=True)

    def start(self) -> None:
        """Start the thread; it ends with the service."""
        self._thread.start()

    def _loop(self) -> None:
        while True:
            try:
                self._database.attempt(lambda: self._broker.attempt(self._pass))
            except Exception:
                log.exception("a rescue pass failed")
            # Not all workers at the same moment.
            if self._stopping.wait(self._settings.rescue_seconds * random.uniform(0.8, 1.2)):
                return

    def _pass(self) -> int:
        return rescue_pass(self._app, self._ledger, self._settings)
