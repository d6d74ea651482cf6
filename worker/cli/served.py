"""Whether a job waits for a worker that nobody has started."""

import db.jobs
from db.errors import DatabaseUnreachableError
from db.jobs import JobProgress
from db.session import Ledger
from worker.cli import console
from worker.settings import Settings


def is_served(progress: JobProgress, settings: Settings) -> bool | None:
    """Whether a worker takes shards of this job; None: Redis does not say, or the job has ended."""
    if progress.job.status.is_final:
        return None
    if progress.leased_shards:
        return True
    from worker.serving import look_once

    serving = look_once(settings)
    return None if serving is None else serving.serves(base_of(progress))


def base_of(progress: JobProgress) -> str:
    """The base of a job; empty where somebody stored a spec without one."""
    return str(progress.job.spec.get("base", ""))


def remedy(base: str) -> str:
    """What to do where no worker serves a base."""
    return f"a worker that serves {base}: genarm worker --base {base}, or a worker for all bases: genarm worker"


def note_if_unserved(ledger: Ledger, settings: Settings, job_id: str) -> None:
    """Say what a stored job waits for, where no worker serves it."""
    try:
        progress = db.jobs.progress(ledger, job_id)
    except DatabaseUnreachableError:
        return
    if is_served(progress, settings) is False:
        console.note(f"The job is stored, and waits for {remedy(base_of(progress))}")
