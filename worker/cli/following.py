"""Following a job until it ends."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import db.jobs
from db.jobs import JobProgress
from db.session import Ledger
from db.spans import Span, ready_span
from worker.cli import console
from worker.cli.errors import Exit
from worker.cli.waiting import POLL_SECONDS, insist


def follow(ledger: Ledger, job_id: str, check: Callable[[], None] = lambda: None) -> JobProgress:
    """Show a job's progress until it has ended, through outages of the database.

    Args:
        ledger: the database.
        job_id: the whole id.
        check: called at each poll; may raise to give up.

    Raises:
        DatabaseUnreachableError: it has been away for too long.
        JobNotFoundError: the job was deleted.
    """
    with console.job_view(job_id) as view:
        for progress in looks(ledger, job_id, check):
            view.show(progress)
    return progress


def looks(ledger: Ledger, job_id: str, check: Callable[[], None] = lambda: None) -> Iterator[JobProgress]:
    """How far a job is, again and again until it has ended; arguments and errors as of `follow`."""
    while True:
        progress = insist(lambda: db.jobs.progress(ledger, job_id), check)
        yield progress
        if progress.job.status.is_final:
            return
        time.sleep(POLL_SECONDS)


def changes(ledger: Ledger, job_id: str) -> Iterator[JobProgress]:
    """The looks at a job that show more than that time has passed; the first and the last are among them."""
    last = None
    for progress in looks(ledger, job_id):
        state = replace(progress, seconds=None, rows_per_second=None, eta_seconds=None)
        if state != last:
            yield progress
        last = state


def followed_spans(ledger: Ledger, job_id: str) -> Iterator[Span]:
    """Rows of a job as they have their outcomes, in order, until it has ended; through outages of the database.

    Raises:
        DatabaseUnreachableError, JobNotFoundError: as `follow`.
    """
    position, is_all = 0, False
    while not is_all:
        first = position
        span, is_all = insist(lambda first=first: ready_span(ledger, job_id, first))  # type: ignore[misc]
        position = span.last
        if span.last > span.first:
            yield span
        elif not is_all:
            time.sleep(POLL_SECONDS)


def exit_code(progress: JobProgress) -> Exit:
    """The exit code that says how a job ended."""
    if progress.job.status != "completed":
        return Exit.FAILURE
    return Exit.FAILED_ROWS if progress.failed_rows else Exit.DONE


def summary(progress: JobProgress) -> str:
    """One line on how a job ended."""
    speed = f", {progress.tokens_per_second:,.0f} tokens/s" if progress.tokens_per_second else ""
    failed = f", {progress.failed_rows} failed" if progress.failed_rows else ""
    reason = f": {progress.job.error_message}" if progress.job.error_message else ""
    return (
        f"{progress.job.id} {progress.job.status.value}{reason}: {progress.completed_rows} of "
        f"{progress.job.total_rows} rows{failed}, {progress.generated_tokens:,} tokens{speed}"
    )
