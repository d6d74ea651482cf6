"""From what a user asks for to a stored and announced job."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import db.jobs
from db.datasets import DatasetSource, open_dataset
from db.datasets.sweep import expanded, points
from db.jobs import Job, NewJob
from db.session import Ledger
from models.errors import SpecError
from models.spec import GenerationSpec
from worker.admission import admit, admit_rows
from worker.scoring import KIND as SCORE
from worker.settings import Settings

MOST_POINTS = 1000
"""Combinations of weights in one sweep."""


@dataclass(frozen=True)
class Submission:
    """A dataset and what to do with it, not validated yet."""

    source: DatasetSource
    spec: dict[str, Any]
    name: str | None
    priority: int
    shard_rows: int | None
    key: str | None = None
    """The same submission with the same key gives the first one's job."""
    sweep: dict[str, list[float]] | None = None
    """Weights to go through, by ARM."""
    kind: str = "generate"


def submit(
    ledger: Ledger, settings: Settings, submission: Submission, on_rows: Callable[[int], None] | None = None
) -> Job:
    """Check the spec and the dataset, and store the job; nothing is written when one of them is wrong.

    Raises:
        ModelsError: the spec is not valid or not allowed, a model cannot be found, or the models do not fit together.
        DatasetError: the dataset is missing, empty, broken, too large, or has no usable column.
        KeyReusedError: the key belongs to another submission.
        DatabaseUnreachableError: the ledger is away.
    """
    spec = GenerationSpec.parse(submission.spec)
    admit(spec, settings, scores=submission.kind == SCORE)
    if submission.name is not None and not submission.name.isprintable():
        raise SpecError("the job's name must be one line of text without control characters")
    rows = open_dataset(submission.source, spec.samples)
    if submission.sweep:
        _require_arms(submission.sweep, spec)
        rows = expanded(rows, submission.sweep)
    from models.checking import check_spec

    stored = check_spec(spec, settings.home).model_dump(mode="json")
    job = NewJob(
        spec=spec.model_dump(mode="json"),
        fixed={name: value for name, value in stored.items() if name == "date" and spec.date is None},
        name=submission.name,
        key=submission.key,
        sweep=submission.sweep or None,
        kind=submission.kind,
        priority=submission.priority,
        samples=spec.samples,
        shard_rows=submission.shard_rows or settings.shard_rows,
    )
    is_slow = not Path(submission.source.name).is_file()
    return db.jobs.submit(ledger, job, admit_rows(rows, settings), on_rows, is_slow=is_slow)


def _require_arms(sweep: dict[str, list[float]], spec: GenerationSpec) -> None:
    known = [arm.name for arm in spec.arms]
    for name in sweep:
        if name not in known:
            raise SpecError(f"--sweep {name}: is no ARM of this job (it has: {', '.join(known) or 'none'})")
    count = len(points(sweep))
    if count > MOST_POINTS:
        raise SpecError(f"--sweep: makes {count} combinations of weights; at most {MOST_POINTS} go into one job")


def announce(ledger: Ledger, settings: Settings) -> None:
    """Tell the workers what is due.

    Raises:
        BrokerUnreachableError: Redis is away; the workers find the job when it is back.
    """
    from worker.app import make_app
    from worker.dispatch import dispatch

    dispatch(make_app(settings), ledger, settings)
