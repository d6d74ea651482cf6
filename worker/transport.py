"""kombu's Redis transport, made to survive queue entries that are no messages of ours.

kombu decodes what it pops from a list before Celery looks at it, and an entry that does not decode ends the worker
with "Unrecoverable error": anyone who can push to Redis could stop every worker. Here an entry of the task queue is
checked first, and dropped with a log line unless it is a plain call of our one task.
"""

import base64
import json
from typing import Any, Literal

from celery.utils.log import get_logger
from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import redis as kombu_redis
from pydantic import BaseModel, ConfigDict, ValidationError
from redis.exceptions import ConnectionError

from worker import metrics

log = get_logger(__name__)

QUEUE = "genarm"
"""The common queue; those of single bases begin with it."""
TASK = "genarm.run_shard"


def queue_of_base(base: str) -> str:
    """The queue of a base that has workers of its own."""
    return f"{QUEUE}.{base}"


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class _Headers(_Part):
    """What Celery reads from the headers; fields that would delay, limit or chain the task must be unset."""

    id: str
    task: Literal["genarm.run_shard"]
    eta: None = None
    expires: None = None
    retries: Literal[0] = 0
    timelimit: list[None] = []
    stamped_headers: None = None
    compression: None = None


class _Route(_Part):
    exchange: str
    routing_key: str


class _Properties(_Part):
    delivery_tag: str
    delivery_info: _Route
    body_encoding: Literal["base64"]


class _Envelope(_Part):
    """A message as kombu stores it in Redis."""

    body: str
    headers: _Headers
    properties: _Properties
    content_type: Literal["application/json"]
    content_encoding: Literal["utf-8"]

    def require_plain_call(self) -> None:
        """The body must be [args, kwargs, options] with no option set: no callbacks, chains or chords."""
        args, kwargs, options = json.loads(base64.b64decode(self.body, validate=True))
        if not (isinstance(args, list) and isinstance(kwargs, dict) and isinstance(options, dict)):
            raise ValueError("the body is not a call")
        if any(options.values()):
            raise ValueError("the message chains other tasks")


def is_plain_call(message: Any) -> bool:
    """True for a message that calls our task and asks Celery for nothing else."""
    try:
        fields = {name.replace("-", "_"): value for name, value in message.items()}
        _Envelope.model_validate(fields).require_plain_call()
    except (ValidationError, ValueError, TypeError, AttributeError, RecursionError):
        return False
    return True


class _DropsWhatIsNoJson:
    """A channel that drops a popped value that is not JSON."""

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)  # type: ignore[misc]
        except (ValueError, RecursionError) as error:
            metrics.DROPPED_MESSAGES.inc()
            log.warning("dropped a queue entry that is not JSON (%s)", type(error).__name__)
            return True


class _DeliversPlainCalls:
    """A transport that delivers plain calls of our task, and control messages."""

    def _deliver(self, message: Any, queue: str) -> None:
        if queue.split(".", 1)[0] == QUEUE and not is_plain_call(message):
            metrics.DROPPED_MESSAGES.inc()
            log.warning("dropped a queue entry that is not a call of %s", TASK)
            return
        super()._deliver(message, queue)  # type: ignore[misc]


class Channel(_DropsWhatIsNoJson, kombu_redis.Channel):  # type: ignore[misc]
    """Of a Redis."""


class Transport(_DeliversPlainCalls, kombu_redis.Transport):  # type: ignore[misc]
    """To a Redis."""

    Channel = Channel


class SentinelChannel(_DropsWhatIsNoJson, kombu_redis.SentinelChannel):  # type: ignore[misc]
    """Of the Redis that Sentinels name."""

    def _get_pool(self, asynchronous: bool = False) -> Any:
        """kombu closes a lost connection before its channel, which then looks for the master once more."""
        if self.connection is None or self.connection.client is None:
            raise ConnectionError("the connection is closed")
        return super()._get_pool(asynchronous)


class SentinelTransport(_DeliversPlainCalls, kombu_redis.SentinelTransport):  # type: ignore[misc]
    """To the Redis that Sentinels name."""

    Channel = SentinelChannel


def install() -> None:
    """Let redis://, rediss://, redis+socket:// and sentinel:// URLs use these transports."""
    TRANSPORT_ALIASES.update(dict.fromkeys(("redis", "rediss"), f"{__name__}:Transport"))
    TRANSPORT_ALIASES["sentinel"] = f"{__name__}:SentinelTransport"
