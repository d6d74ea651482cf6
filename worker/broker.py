"""Redis as kombu reaches it: how to connect, and which errors say that it is away."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kombu import Connection
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from worker.errors import BrokerUnreachableError

TRANSPORT_OPTIONS = {
    "priority_steps": list(range(10)),
    "socket_connect_timeout": 5,
    "socket_timeout": 30,
    # Who cannot reach Redis is told at once: commands tell their user, and workers have a patience of their own.
    "max_retries": 1,
    "interval_start": 0,
    "interval_step": 0,
}
BROKER_ERRORS = (OperationalError, OSError, RedisError)


@contextmanager
def reaching(connection: Connection) -> Iterator[Any]:
    """The Redis client of a connection.

    Raises:
        BrokerUnreachableError: Redis is away, or what is done inside the block says so.
    """
    try:
        with connection.default_channel.conn_or_acquire() as client:
            yield client
    except BROKER_ERRORS as error:
        raise unreachable(connection, error) from error


def unreachable(connection: Connection, error: Exception) -> BrokerUnreachableError:
    """The error for the user, without a password."""
    return BrokerUnreachableError(
        f"Redis at {connection.as_uri()} does not answer ({type(error).__name__}); is it running?"
    )
