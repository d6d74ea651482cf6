"""Shards that have all their outcomes are completed together: each completion locks its job, and waits for the disk."""

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import db.shards
from db.session import Ledger
from db.shards import Lease
from worker.patience import Patience


@dataclass(frozen=True)
class Closing:
    """A shard to complete, and the promise made to it."""

    lease: Lease
    done: Future[bool] = field(default_factory=Future)


class Closer:
    """Completes shards: of the threads that come while one of them is at it, the next one does it for all."""

    def __init__(self, ledger: Ledger, patience: Patience) -> None:
        self._ledger = ledger
        self._patience = patience
        self._waiting: list[Closing] = []
        self._gathering = threading.Lock()
        self._turn = threading.Lock()

    def close(self, lease: Lease) -> bool:
        """Complete a shard; False when its lease was lost or rows are pending.

        Raises:
            DatabaseUnreachableError: the database is away, and the service is stopping.
        """
        closing = Closing(lease)
        with self._gathering:
            self._waiting.append(closing)
        with self._turn:
            if not closing.done.done():
                with self._gathering:
                    group, self._waiting = self._waiting, []
                self._complete(group)
        return closing.done.result()

    def _complete(self, group: Sequence[Closing]) -> None:
        leases = [closing.lease for closing in group]
        try:
            done = self._patience.insist(lambda: db.shards.complete(self._ledger, leases))
        except Exception as error:
            for closing in group:
                closing.done.set_exception(error)
        else:
            for closing in group:
                closing.done.set_result(closing.lease in done)
