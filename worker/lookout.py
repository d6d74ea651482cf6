"""One thread per worker says which bases it serves, finds the queues of others, and looks for what waits too long."""

import threading
import time
from typing import TYPE_CHECKING

from celery import Celery
from celery.utils.log import get_logger

import db.waiting
from db.session import Ledger
from worker import metrics, serving
from worker.broker import reaching
from worker.patience import Patience
from worker.settings import Settings

if TYPE_CHECKING:
    from worker.consumer import Consumer

log = get_logger(__name__)


class Lookout:
    """Looks at intervals until the service stops."""

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
        self._unsent_since: float | None = None
        self._thread = threading.Thread(target=self._loop, name="lookout", daemon=True)

    def start(self) -> None:
        """Look once, so that what is published next finds this worker, and start the thread."""
        self._safely_look()
        self._thread.start()

    def look(self) -> None:
        """One pass.

        Raises:
            DbError: the ledger refuses to answer, other than by being away.
        """
        found = self._broker.attempt(self._say_and_look)
        if found is not None and not self._settings.bases:
            self._take_from(found.queues)
        self._database.attempt(lambda: self._measure(found))

    def _say_and_look(self) -> serving.Serving:
        with self._app.connection_or_acquire() as connection, reaching(connection) as client:
            if not self._app.service.is_draining:
                serving.say(client, self._settings.bases)
            return serving.look(client)

    def _take_from(self, queues: list[str]) -> None:
        consumer: Consumer | None = self._app.service.consumer
        new = [queue for queue in queues if queue not in self._app.amqp.queues.consume_from]
        if consumer is not None:
            for queue in new:
                consumer.take_from(queue)

    def _measure(self, found: serving.Serving | None) -> None:
        outbox = db.waiting.outbox(self._ledger)
        self._unsent_since = (self._unsent_since or time.monotonic()) if outbox.is_unsent else None
        unsent = time.monotonic() - self._unsent_since if self._unsent_since is not None else 0.0
        metrics.OUTBOX_LAG.set(max(outbox.seconds, unsent))
        if found is not None:
            jobs = {} if found.has_all else db.waiting.jobs_by_base(self._ledger)
            metrics.UNSERVED_JOBS.set(sum(count for base, count in jobs.items() if not found.serves(base)))

    def _loop(self) -> None:
        while not self._stopping.wait(self._settings.rescue_seconds):
            self._safely_look()

    def _safely_look(self) -> None:
        try:
            self.look()
        except Exception:
            log.exception("looking for what waits failed")
