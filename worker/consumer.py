"""Celery's consumer, reconnecting within seconds of Redis's return and without a line for each attempt."""

from typing import Any

from celery.utils.log import get_logger
from celery.worker import consumer
from celery.worker.state import maybe_shutdown

log = get_logger(__name__)

FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 3.0


class Consumer(consumer.Consumer):  # type: ignore[misc]
    """The rescuer of this process says when Redis goes away and when it is back; this only connects."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.app.service.consumer = self

    def take_from(self, queue: str) -> None:
        """Take messages from one more queue, also after the next connection. Called from any thread."""
        self.call_soon(self._take_from, queue)

    def _take_from(self, queue: str) -> None:
        if self.task_consumer is not None:  # it is None between two connections; who asked asks again
            self.add_task_queue(queue)

    def ensure_connected(self, conn: Any) -> Any:
        """Connect, waiting as long as it takes; ends when the worker is to stop."""
        connection = conn.ensure_connection(
            lambda error, seconds: log.debug("no connection to Redis, again in %.1f s: %s", seconds, error),
            interval_start=FIRST_WAIT_SECONDS,
            interval_step=FIRST_WAIT_SECONDS,
            interval_max=LONGEST_WAIT_SECONDS,
            callback=maybe_shutdown,
        )
        self.first_connection_attempt = False
        return connection
