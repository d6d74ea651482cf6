"""From what a user asks for to a stored and announced job."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import db.jobs
from db.datasets import Columns, open_dataset
from db.jobs import Job, NewJob
from db.session import Ledger
from models.spec import GenerationSpec
from worker.settings import Settings


@dataclass(frozen=True)
class Submission:
    """A dataset and what to do with it, not validated yet."""

    source: str
    columns: Columns
    file_format: str | None
    spec: dict[str, Any]
    name: str | None
    priority: int
    shard_rows: int | None


def submit(
    ledger: Ledger, settings: Settings, submission: Submission, on_rows: Callable[[int], None] | None = None
) -> Job:
    """Check the spec and the dataset, and store the job; nothing is written when one of them is wrong.

    Raises:
        ModelsError: the spec is not valid, a model cannot be found, or the models do not fit together.
        DatasetError: the dataset is missing, empty, broken, or has no usable column.
        DatabaseUnreachableError: the ledger is away.
    """
    spec = GenerationSpec.parse(submission.spec)
    rows = open_dataset(submission.source, submission.columns, submission.file_format)
    from models.checking import check_spec

    check_spec(spec, settings.home)
    job = NewJob(
        spec=spec.model_dump(mode="json"),
        name=submission.name,
        priority=submission.priority,
        samples=spec.samples,
        shard_rows=submission.shard_rows or settings.shard_rows,
    )
    return db.jobs.submit(ledger, job, rows, on_rows)


def announce(ledger: Ledger, settings: Settings) -> None:
    """Tell the workers what is due.

    Raises:
        BrokerUnreachableError: Redis is away; the workers find the job when it is back.
    """
    from worker.app import make_app
    from worker.dispatch import dispatch

    dispatch(make_app(settings), ledger, settings)
