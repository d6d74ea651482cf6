"""Publishing: ring the doorbell in Redis for shards that the ledger says are due."""

from celery import Celery
from celery.utils.log import get_logger
from kombu.exceptions import ChannelError, OperationalError
from redis.exceptions import RedisError

import db.publishing
from db.session import Ledger
from worker import metrics
from worker.errors import BrokerUnreachableError
from worker.settings import Settings
from worker.transport import QUEUE, TASK

log = get_logger(__name__)

LOST_SECONDS = 10.0
"""A shard published so long ago, with an empty queue and nobody's lease, has lost its message."""
STALE_SECONDS = 600.0
"""While the queue is not empty, its messages may just be waiting: ringing again would only make it longer."""
HIGHEST_PRIORITY = 9
RETRY_POLICY = {"max_retries": 1, "interval_start": 0, "interval_step": 0.2}
BROKER_ERRORS = (OperationalError, OSError, RedisError)


def dispatch(app: Celery, ledger: Ledger, settings: Settings) -> int:
    """Publish the shards that are due, and return how many.

    Raises:
        BrokerUnreachableError: Redis is away; the shards stay due.
        DatabaseUnreachableError: the ledger is away.
    """
    tickets = db.publishing.due(ledger, window=settings.window, republish_after_seconds=_republish_seconds(app))
    sent = 0
    try:
        with app.producer_or_acquire() as producer:
            for ticket in tickets:
                app.send_task(
                    TASK,
                    args=(ticket.shard_id,),
                    queue=QUEUE,
                    priority=HIGHEST_PRIORITY - ticket.priority,
                    producer=producer,
                    retry=True,
                    retry_policy=RETRY_POLICY,
                )
                sent += 1
                metrics.PUBLISHED.inc()
    except BROKER_ERRORS as error:
        raise _unreachable(app, error) from error
    finally:
        if sent < len(tickets):
            db.publishing.unpublish(ledger, [ticket.shard_id for ticket in tickets[sent:]])
    return sent


def _republish_seconds(app: Celery) -> float:
    return STALE_SECONDS if queue_length(app) else LOST_SECONDS


def queue_length(app: Celery) -> int:
    """Messages that wait in Redis; those that a worker holds are not counted.

    Raises:
        BrokerUnreachableError: Redis is away.
    """
    try:
        with app.connection_or_acquire() as connection:
            channel = connection.default_channel
            count = int(channel.queue_declare(queue=QUEUE, passive=True).message_count)
    except ChannelError:
        count = 0
    except BROKER_ERRORS as error:
        raise _unreachable(app, error) from error
    metrics.QUEUE_MESSAGES.set(count)
    return count


def _unreachable(app: Celery, error: Exception) -> BrokerUnreachableError:
    where = app.connection_for_write().as_uri()
    return BrokerUnreachableError(f"Redis at {where} does not answer ({type(error).__name__}); is it running?")
