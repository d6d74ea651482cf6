"""The one task: a shard through the engine."""

import functools
import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from typing import Any, TypeAlias

from celery import Celery
from celery.exceptions import Reject
from celery.utils.log import get_logger

import db.jobs
import db.shards
from db.errors import DatabaseUnreachableError, JobNotFoundError
from db.faults import Point, reach
from db.shards import Lease, NewCompletion, RequestRow, RowOutcome
from models.completion import Completion
from models.errors import (
    DeviceLostError,
    IncompatibleArmError,
    ModelMemoryError,
    ModelNotAllowedError,
    ModelNotFoundError,
    ModelsError,
    ModelsInUseError,
    RowError,
    SpecError,
    UnsupportedModelError,
)
from models.scoring import ResponseRow
from models.spec import PromptRow
from worker import logs, metrics, tracing
from worker.admission import admit_row
from worker.engines import LoadedJob
from worker.errors import BaseNotServedError, EngineEndedError
from worker.heartbeats import Ending
from worker.scoring import KIND as SCORE
from worker.scoring import start_scoring
from worker.service import Service
from worker.transport import TASK

log = get_logger(__name__)

JOB_ERROR_CODES = {
    SpecError: "invalid_spec",
    ModelNotAllowedError: "model_not_allowed",
    ModelNotFoundError: "model_not_found",
    UnsupportedModelError: "unsupported_model",
    IncompatibleArmError: "incompatible_arm",
    ModelMemoryError: "models_too_large",
}
LARGEST_ID = 2**63 - 1

Promise: TypeAlias = "Future[list[Completion]] | Future[list[NewCompletion]]"
Answer = tuple[RequestRow, Promise]


def register(app: Celery, service: Service) -> None:
    """Make the task known to the app."""

    def task(*arguments: Any, **unknown: Any) -> None:
        if len(arguments) != 1 or unknown or not _is_id(arguments[0]):
            metrics.DROPPED_MESSAGES.inc()
            log.warning("dropped a message that names no shard")
            return
        run_shard(service, arguments[0])

    app.task(task, name=TASK)


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 < value <= LARGEST_ID


def run_shard(service: Service, shard_id: int) -> None:
    """Claim a shard and run it; return quietly when somebody else has it, or when it is done.

    Raises:
        Reject: this worker is stopping; the message goes back to the queue.
    """
    with service.company.shared():
        if service.is_draining:
            raise Reject(requeue=True)
        try:
            lease = service.database.insist(
                lambda: db.shards.claim(service.ledger, shard_id, service.owner, service.settings.lease_seconds)
            )
        except DatabaseUnreachableError:
            raise Reject(requeue=True) from None
        if lease is not None:
            _run_leased(service, lease)


def _run_leased(service: Service, lease: Lease) -> None:
    reach(Point.AFTER_CLAIM)
    run = ShardRun(service, lease)
    service.heartbeats.add(run)
    try:
        with (
            logs.about(job=lease.job_id, shard=lease.shard_id),
            tracing.span("shard", job=lease.job_id, shard=lease.shard_id, attempt=lease.attempt) as found,
        ):
            run.run()
            found |= {"rows": run.rows, "tokens": run.tokens}
    except DatabaseUnreachableError:
        log.warning("shard %d: the database is away at the end; others take it when its lease runs out", lease.shard_id)
    except (EngineEndedError, DeviceLostError) as error:
        # Not released, as if the process had died: one of the rows may be why, which must not run for ever.
        log.error("shard %d is tried again when its lease runs out: %s", lease.shard_id, error)
        service.lose_engine()
    except Exception:
        # Not released: the lease runs out and counts as an attempt, so that a shard that always fails ends.
        log.exception("shard %d of %s failed; it is tried again when its lease runs out", lease.shard_id, lease.job_id)
    finally:
        service.heartbeats.remove(run)
        service.rescuer.ring()
    reach(Point.BEFORE_ACK)


class ShardRun:
    """A leased shard on its way through the engine."""

    def __init__(self, service: Service, lease: Lease) -> None:
        self.lease = lease
        self._service = service
        self._ledger = service.ledger
        self._ended: Ending | None = None
        self._futures: list[Promise] = []
        self._lock = threading.Lock()
        self._answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self._kept: list[Future[bool]] = []
        self._tokens = 0

    @property
    def rows(self) -> int:
        """Rows that were handed to the writer."""
        return len(self._kept)

    @property
    def tokens(self) -> int:
        """Tokens of their completions."""
        return self._tokens

    def end(self, why: Ending) -> None:
        """Stop early: rows that are not finished leave the engine. Called from any thread."""
        with self._lock:
            self._ended = self._ended or why
            futures = list(self._futures)
        for future in futures:
            future.cancel()

    def run(self) -> None:
        """Generate the rows that have no outcome yet, write them, and close the shard."""
        if not self.lease.is_suspect:
            self._run()
            return
        with self._service.company.alone(give_up=lambda: self._ended is not None) as is_alone:
            if is_alone and not self._service.database.insist(lambda: db.shards.begin_alone(self._ledger, self.lease)):
                self.end(Ending.LOST)
            self._run()

    def _run(self) -> None:
        started = time.monotonic()
        job = self._load_job()
        if job is not None:
            try:
                self._generate(job)
            finally:
                self._service.engines.let_go(job)
        if job is not None or self._ended is not None:
            self._close(time.monotonic() - started)

    def _generate(self, job: LoadedJob) -> None:
        if self._service.is_draining:
            self.end(Ending.HANDED_BACK)
        rows = self._service.database.insist(lambda: db.shards.pending_rows(self._ledger, self.lease))
        self._submit(job, rows)
        self._collect()

    def _load_job(self) -> LoadedJob | None:
        """The job's models; None when the job is gone, fails because they cannot be loaded, or the shard has ended."""
        job_id, insist = self.lease.job_id, self._service.database.insist
        try:
            return self._service.engines.job(
                job_id,
                lambda: insist(lambda: db.jobs.find(self._ledger, job_id)),
                give_up=lambda: self._ended is not None or self._service.is_draining,
            )
        except JobNotFoundError:
            log.info("%s was deleted", job_id)
        except ModelsInUseError:
            self.end(Ending.HANDED_BACK)
        except BaseNotServedError as error:
            log.warning("shard %d is handed back: %s", self.lease.shard_id, error)
            self.end(Ending.HANDED_BACK)
        except ModelsError as error:
            code = JOB_ERROR_CODES.get(type(error), "model_error")
            message = str(error)
            log.error("%s fails: %s", job_id, message)
            insist(lambda: db.jobs.fail_job(self._ledger, job_id, code, message))
        return None

    def _submit(self, job: LoadedJob, rows: Sequence[RequestRow]) -> None:
        for row in rows:
            with self._lock:
                if self._ended is not None:
                    return
                future = self._start(job, row)
                self._futures.append(future)
            future.add_done_callback(functools.partial(self._answer, row, time.monotonic()))

    def _answer(self, row: RequestRow, started: float, future: Future[list[Completion]]) -> None:
        if not future.cancelled() and future.exception() is None:
            metrics.REQUEST_LATENCY.observe(time.monotonic() - started)
        self._answers.put((row, future))

    def _start(self, job: LoadedJob, row: RequestRow) -> Promise:
        try:
            if job.kind == SCORE:
                response = ResponseRow.parse(row.row, row.index, job.spec)
                admit_row(response.prompt, self._service.settings, response.response)
                return start_scoring(self._service.engines.engine, job.guided, response, job.spec)
            prompt = PromptRow.parse(row.row, row.index, job.spec)
            admit_row(prompt, self._service.settings)
            return self._service.engines.engine.submit(job.guided, prompt)
        except Exception as error:
            refused: Promise = Future()
            refused.set_exception(error)
            return refused

    def _collect(self) -> None:
        """Hand each row to the writer as the engine finishes it, then wait until all are in the ledger."""
        for left in reversed(range(len(self._futures))):
            row, future = self._answers.get()
            outcome = self._outcome(row, future)
            if outcome is not None:
                reach(Point.AFTER_GENERATE)
                self._tokens += sum(len(completion.tokens) for completion in outcome.completions)
                self._kept.append(self._service.writer.put(outcome, is_last=not left))
        kept = [promise.result() for promise in self._kept]  # all of them: each row must be in the ledger first
        if not all(kept):
            self._ended = Ending.LOST

    def _outcome(self, row: RequestRow, future: Promise) -> RowOutcome | None:
        try:
            completions = [_new_completion(completion) for completion in future.result()]
        except CancelledError:
            if self._ended is None:
                raise EngineEndedError("the engine has ended") from None
            return None
        except RowError as error:
            return RowOutcome(self.lease, row.request_id, [], (error.code, str(error)))
        except Exception as error:
            with logs.about(request=row.request_id, row=row.index):
                log.error("a row failed: %s", error, exc_info=error)
            return RowOutcome(self.lease, row.request_id, [], ("engine_error", f"{type(error).__name__}: {error}"))
        return RowOutcome(self.lease, row.request_id, completions, None)

    def _close(self, seconds: float) -> None:
        shard_id, job_id = self.lease.shard_id, self.lease.job_id
        reach(Point.AFTER_COMMIT)
        if self._ended is None and self._service.closer.close(self.lease):
            metrics.SHARDS.labels("done").inc()
            metrics.SHARD_SECONDS.observe(seconds)
            speed = self._tokens / max(seconds, 1e-6)
            log.info(
                "shard %d of %s: %d rows, %d tokens in %.1f s (%.0f tokens/s)",
                shard_id, job_id, len(self._kept), self._tokens, seconds, speed,
            )  # fmt: skip
            return
        why = self._ended or Ending.LOST
        metrics.SHARDS.labels(why.name.lower()).inc()
        log.info("shard %d of %s: %s after %d rows", shard_id, job_id, why.value, len(self._kept))
        if why is Ending.LOST:
            metrics.LEASES_LOST.inc()
        else:
            self._service.database.insist(lambda: db.shards.release(self._ledger, self.lease))


def _new_completion(completion: Completion | NewCompletion) -> NewCompletion:
    if isinstance(completion, NewCompletion):
        return completion
    return NewCompletion(
        sample=completion.sample,
        text=completion.text,
        finish_reason=completion.finish_reason,
        tokens=completion.tokens,
        logprobs=completion.logprobs,
        base_logprobs=completion.base_logprobs,
        token_rewards=completion.token_rewards,
        prompt_tokens=completion.prompt_tokens,
    )
