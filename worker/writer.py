"""Group commit: one thread writes the finished rows of all shards, a transaction for many rows."""

import math
import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from celery.utils.log import get_logger

import db.shards
from db.errors import DatabaseUnreachableError
from db.session import Ledger
from db.shards import RowOutcome, Written
from worker import metrics
from worker.patience import Patience

log = get_logger(__name__)

LINGER_SECONDS = 0.05
"""A row waits so long for others to share its transaction, unless its shard waits for it."""
MOST_ROWS = 512


@dataclass(frozen=True)
class Pending:
    """An outcome that is not written yet, and the promise made to its shard."""

    outcome: RowOutcome
    is_last: bool = False
    kept: Future[bool] = field(default_factory=Future)


class Writer:
    """Writes outcomes to the ledger, and keeps them while the database is away."""

    def __init__(self, ledger: Ledger, patience: Patience) -> None:
        self._ledger = ledger
        self._patience = patience
        self._waiting: queue.SimpleQueue[Pending | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._loop, name="writer", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """Write what is waiting, and end the thread; waits so long for it."""
        self._waiting.put(None)
        self._thread.join(seconds)

    def put(self, outcome: RowOutcome, is_last: bool = False) -> Future[bool]:
        """Queue an outcome; the future gives True when it is in the ledger, False when its lease was lost.

        Args:
            outcome: the outcome.
            is_last: its shard has no more to come and waits: write now.
        """
        pending = Pending(outcome, is_last)
        self._waiting.put(pending)
        return pending.kept

    def _loop(self) -> None:
        while True:
            batch, ended = self._next_batch()
            if batch:
                self._commit(batch)
            if ended:
                return

    def _next_batch(self) -> tuple[list[Pending], bool]:
        """The next rows to write together, and whether they are the last."""
        batch: list[Pending] = []
        deadline = math.inf
        while len(batch) < MOST_ROWS:
            seconds = max(0.0, deadline - time.monotonic())
            try:
                item = self._waiting.get(timeout=None if seconds == math.inf else seconds)
            except queue.Empty:
                break
            if item is None:
                return batch, True
            batch.append(item)
            deadline = 0.0 if item.is_last else min(deadline, time.monotonic() + LINGER_SECONDS)
        return batch, False

    def _commit(self, batch: Sequence[Pending]) -> None:
        outcomes = [pending.outcome for pending in batch]
        try:
            written = self._patience.insist(lambda: self._write(outcomes))
        except DatabaseUnreachableError as error:
            for pending in batch:
                pending.kept.set_exception(error)
        except Exception as error:
            self._isolate(batch, error)
        else:
            metrics.note_written(outcomes, written)
            for pending in batch:
                pending.kept.set_result(pending.outcome.lease not in written.lost)

    @metrics.COMMIT_SECONDS.time()
    def _write(self, outcomes: Sequence[RowOutcome]) -> Written:
        return db.shards.write(self._ledger, outcomes)

    def _isolate(self, batch: Sequence[Pending], error: Exception) -> None:
        """The database refuses something in the batch: write the rest, and store the culprit as a failed row."""
        if len(batch) > 1:
            middle = len(batch) // 2
            self._commit(batch[:middle])
            self._commit(batch[middle:])
            return
        (pending,) = batch
        if pending.outcome.error is not None:
            pending.kept.set_exception(error)
            return
        log.error("request %s: the database refused the completion: %s", pending.outcome.request_id, error)
        refusal = ("not_storable", f"the database refused the completion ({type(error).__name__})")
        self._commit([replace(pending, outcome=replace(pending.outcome, completions=[], error=refusal))])
