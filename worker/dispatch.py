"""Publishing: ring the doorbell in Redis for shards that the ledger says are due."""

from typing import Any

from celery import Celery
from celery.utils.log import get_logger
from kombu.exceptions import ChannelError

import db.publishing
from db.session import Ledger
from worker import metrics
from worker.broker import BROKER_ERRORS, reaching, unreachable
from worker.serving import Serving, look
from worker.settings import Settings
from worker.transport import TASK

log = get_logger(__name__)

LOST_SECONDS = 10.0
"""A shard published so long ago, with an empty queue and nobody's lease, has lost its message."""
STALE_SECONDS = 600.0
"""While the queue is not empty, its messages may just be waiting: ringing again would only make it longer."""
HIGHEST_PRIORITY = 9
RETRY_POLICY = {"max_retries": 1, "interval_start": 0, "interval_step": 0.2}


def dispatch(app: Celery, ledger: Ledger, settings: Settings) -> int:
    """Publish the shards that are due and that somebody serves, each to its queue, and return how many.

    Raises:
        BrokerUnreachableError: Redis is away; the shards stay due.
        DatabaseUnreachableError: the ledger is away.
    """
    serving, waiting = look_at_queues(app)
    tickets = db.publishing.due(
        ledger,
        window=settings.window,
        republish_after_seconds=STALE_SECONDS if waiting else LOST_SECONDS,
        bases=serving.only,
    )
    sent = 0
    try:
        with app.producer_or_acquire() as producer:
            for ticket in tickets:
                app.send_task(
                    TASK,
                    args=(ticket.shard_id,),
                    queue=serving.queue_of(ticket.base),
                    priority=HIGHEST_PRIORITY - ticket.priority,
                    producer=producer,
                    retry=True,
                    retry_policy=RETRY_POLICY,
                )
                sent += 1
                metrics.PUBLISHED.inc()
    except BROKER_ERRORS as error:
        raise unreachable(app.connection_for_write(), error) from error
    finally:
        if sent < len(tickets):
            db.publishing.unpublish(ledger, [ticket.shard_id for ticket in tickets[sent:]])
    return sent


def look_at_queues(app: Celery) -> tuple[Serving, int]:
    """Who serves what, and how many messages wait in their queues; those that a worker holds are not counted.

    Raises:
        BrokerUnreachableError: Redis is away.
    """
    with app.connection_or_acquire() as connection, reaching(connection) as client:
        serving = look(client)
        count = sum(_queue_length(connection.default_channel, queue) for queue in serving.queues)
    metrics.QUEUE_MESSAGES.set(count)
    return serving, count


def _queue_length(channel: Any, queue: str) -> int:
    try:
        return int(channel.queue_declare(queue=queue, passive=True).message_count)
    except ChannelError:
        return 0
