"""Following a job until it ends."""

import time
from collections.abc import Callable, Iterator

import db.jobs
from db.errors import DatabaseUnreachableError
from db.jobs import JobProgress
from db.session import Ledger
from db.spans import Span, ready_span
from worker.cli import console
from worker.cli.errors import Exit

POLL_SECONDS = 0.25
PATIENCE_SECONDS = 120.0


def follow(ledger: Ledger, job_id: str, check: Callable[[], None] = lambda: None) -> JobProgress:
    """Show a job's progress until it has ended, through short outages of the database.

    Args:
        ledger: the database.
        job_id: the whole id.
        check: called at each poll; may raise to give up.

    Raises:
        DatabaseUnreachableError: it has been away for PATIENCE_SECONDS.
        JobNotFoundError: the job was deleted.
    """
    answered = time.monotonic()
    with console.job_view(job_id) as view:
        while True:
            check()
            try:
                progress = db.jobs.progress(ledger, job_id)
            except DatabaseUnreachableError:
                if time.monotonic() - answered > PATIENCE_SECONDS:
                    raise
            else:
                answered = time.monotonic()
                view.show(progress)
                if progress.job.status.is_final:
                    return progress
            time.sleep(POLL_SECONDS)


def followed_spans(ledger: Ledger, job_id: str) -> Iterator[Span]:
    """Rows of a job as they have their outcomes, in order, until it has ended; through short outages of the database.

    Raises:
        DatabaseUnreachableError, JobNotFoundError: as `follow`.
    """
    answered = time.monotonic()
    position, is_all = 0, False
    while not is_all:
        try:
            span, is_all = ready_span(ledger, job_id, position)
        except DatabaseUnreachableError:
            if time.monotonic() - answered > PATIENCE_SECONDS:
                raise
            time.sleep(POLL_SECONDS)
            continue
        answered = time.monotonic()
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
    speed = f", {progress.generated_tokens / progress.seconds:,.0f} tokens/s" if progress.seconds else ""
    failed = f", {progress.failed_rows} failed" if progress.failed_rows else ""
    reason = f": {progress.job.error_message}" if progress.job.error_message else ""
    return (
        f"{progress.job.id} {progress.job.status.value}{reason}: {progress.completed_rows} of "
        f"{progress.job.total_rows} rows{failed}, {progress.generated_tokens:,} tokens{speed}"
    )
