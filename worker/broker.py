"""Redis as kombu reaches it: how to connect, and which errors say that it is away."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kombu import Connection
from kombu.exceptions import OperationalError
from redis.exceptions import AuthenticationError, RedisError, ResponseError
from redis.sentinel import MasterNotFoundError

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
    """The error for the user, in one line and without a password."""
    where, causes = f"Redis at {connection.as_uri()}", list(_causes(error))
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return BrokerUnreachableError(
                f"{where} is not trusted: {cause.verify_message}; check ssl_ca_certs and the host in GENARM_BROKER_URL"
            )
        if isinstance(cause, ssl.SSLError):
            return BrokerUnreachableError(f"{where} does not speak TLS as this side does ({cause.reason})")
        if isinstance(cause, AuthenticationError):
            return BrokerUnreachableError(f"{where} refuses the user or the password of GENARM_BROKER_URL")
        if isinstance(cause, MasterNotFoundError):
            return BrokerUnreachableError(
                f"{where}: no Sentinel names such a master; check that they run, master_name and sentinel_password"
            )
        if isinstance(cause, ResponseError):
            return BrokerUnreachableError(f"{where} refuses: {cause}; check GENARM_BROKER_URL and the user's rights")
    reason = next((cause.strerror for cause in causes if isinstance(cause, OSError) and cause.strerror), None)
    return BrokerUnreachableError(f"{where} does not answer ({reason or type(error).__name__}); is it running?")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
