"""Which bases are served by workers that take nothing else, and the queue of each.

Such a worker says so in Redis, again and again, and what was said ends by itself. Shards of a base that has workers of
its own go through a queue of its own, from which workers for all bases take too; all others go through the common one.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from kombu import Connection

from worker.admission import required_registry
from worker.broker import TRANSPORT_OPTIONS, reaching
from worker.errors import BrokerUnreachableError
from worker.settings import Settings
from worker.transport import QUEUE, queue_of_base

KEY = "genarm.serving"
"""In Redis, a sorted set: base, or ALL, to the time by Redis's clock until which it is served."""
ALL = ""
"""Stands for every base; no reference is empty."""
SAID_SECONDS = 30.0
MOST_BASES = 1000
"""Each queue costs keys in every poll of Redis, and whoever can write to Redis could name any number."""


@dataclass(frozen=True)
class Serving:
    """What workers have said of late; nothing of it is needed for a right result."""

    bases: frozenset[str] = frozenset()
    """Those that have workers of their own."""
    has_all: bool = False
    """Whether there is a worker for every base."""

    @property
    def only(self) -> frozenset[str] | None:
        """The bases whose shards some worker takes; None: all, or nobody has said anything yet."""
        return self.bases if self.bases and not self.has_all else None

    @property
    def queues(self) -> list[str]:
        """The queues that somebody takes from."""
        common = [] if self.only else [QUEUE]
        return common + sorted(map(queue_of_base, self.bases))

    @property
    def is_nobody(self) -> bool:
        """Whether there is no worker."""
        return not self.bases and not self.has_all

    def queue_of(self, base: str) -> str:
        """Where a shard of this base goes."""
        return queue_of_base(base) if base in self.bases else QUEUE

    def serves(self, base: str) -> bool:
        """Whether some worker takes jobs with this base."""
        return self.has_all or base in self.bases


def say(client: Any, bases: Iterable[str]) -> None:
    """Say that this worker serves some bases; all, where there are none."""
    now = _now(client)
    with client.pipeline(transaction=False) as pipeline:
        pipeline.zadd(KEY, dict.fromkeys(tuple(bases) or (ALL,), now + SAID_SECONDS))
        pipeline.zremrangebyscore(KEY, "-inf", now)
        pipeline.execute()


def look(client: Any) -> Serving:
    """What workers have said."""
    found = client.zrangebyscore(KEY, _now(client), "+inf", start=0, num=MOST_BASES)
    names = {name.decode(errors="replace") for name in found}
    return Serving(frozenset(names - {ALL}), ALL in names)


def _now(client: Any) -> float:
    seconds, microseconds = client.time()
    return float(seconds + microseconds / 1e6)


def look_once(settings: Settings) -> Serving | None:
    """What workers have said, for a process that is none; None where Redis does not answer."""
    broker = settings.broker
    try:
        with (
            Connection(broker.url, transport_options=TRANSPORT_OPTIONS | broker.options) as connection,
            reaching(connection) as client,
        ):
            return look(client)
    except BrokerUnreachableError:
        return None


def with_all_names(settings: Settings) -> Settings:
    """The same settings; where a worker serves some bases alone, with every name that a job may call them by.

    Raises:
        ModelNotAllowedError: a base is not in the registry.
    """
    if not settings.bases or (registry := required_registry(settings)) is None:
        return settings
    names = (name for base in settings.bases for name in registry.names_of(base))
    return settings.model_copy(update={"bases": tuple(dict.fromkeys(names))})
