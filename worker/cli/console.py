"""All printing: facts on stdout, everything else on stderr, progress bars on a terminal only."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from db.jobs import JobProgress

_stderr = Console(stderr=True, highlight=False, soft_wrap=True)


def out(text: str) -> None:
    """A fact, on stdout."""
    print(text)


def out_json(facts: Mapping[str, Any]) -> None:
    """An object on a line of stdout."""
    print(json.dumps(facts, ensure_ascii=False, default=str), flush=True)


def fact(facts: Mapping[str, Any], text: str, as_json: bool) -> None:
    """What a command did: an object on stdout, or a line for people on stderr."""
    if as_json:
        out_json(facts)
    else:
        note(text)


def note(text: str) -> None:
    """Something for people, on stderr."""
    _stderr.print(text, markup=False)


def error(text: str) -> None:
    """What went wrong, on stderr."""
    print(f"Error: {text}", file=sys.stderr)


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table on stdout, as wide as the terminal; never cut where stdout is no terminal."""
    is_terminal = sys.stdout.isatty()
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        grid.add_column(column, overflow="ellipsis", no_wrap=True)
    for row in rows:
        grid.add_row(*("" if cell is None else str(cell) for cell in row))
    Console(width=None if is_terminal else 10_000, markup=False, highlight=False).print(grid)


class JobBar:
    """The progress bar of a job."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def show(self, now: JobProgress) -> None:
        """Draw how far the job is."""
        done = now.completed_rows + now.failed_rows
        speed = f"{now.generated_tokens / now.seconds:,.0f} tok/s" if now.seconds else ""
        failed = f"{now.failed_rows} failed" if now.failed_rows else ""
        parts = [now.job.status.value, f"{now.workers} workers" if now.workers > 1 else "", speed, failed]
        self._progress.update(
            self._task, completed=done, total=now.job.total_rows, state="  ".join(part for part in parts if part)
        )


@contextmanager
def job_bar(description: str) -> Iterator[JobBar]:
    """Show a job's progress on stderr while the block runs; nothing where stderr is no terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[state]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=_stderr, disable=not _stderr.is_terminal) as progress:
        yield JobBar(progress, progress.add_task(description, total=None, state=""))


@contextmanager
def count_bar(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """A callback that shows how many of `total` are done on stderr; nothing where stderr is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=_stderr, disable=not _stderr.is_terminal, transient=True) as progress:
        task = progress.add_task(description, total=total)
        yield lambda count: progress.update(task, completed=count)


@contextmanager
def rows_read(source: str) -> Iterator[Callable[[int], None]]:
    """A callback that shows on stderr how many rows were read; nothing where stderr is no terminal."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TextColumn("{task.completed:,.0f} rows"))
    with Progress(*columns, console=_stderr, disable=not _stderr.is_terminal, transient=True) as progress:
        task = progress.add_task(f"checking models, reading {source}", total=None)
        yield lambda count: progress.update(task, completed=count)


class TrainingStep(Protocol):
    """One optimiser step of a training run."""

    @property
    def step(self) -> int: ...  # noqa: D102

    @property
    def steps(self) -> int: ...  # noqa: D102

    @property
    def loss(self) -> float: ...  # noqa: D102


@contextmanager
def training_bar() -> Iterator[Callable[[TrainingStep], None]]:
    """A callback that shows each step on stderr: a bar on a terminal, nothing elsewhere."""
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[state]}"))
    with Progress(*columns, TimeRemainingColumn(), console=_stderr, disable=not _stderr.is_terminal) as progress:
        task = progress.add_task("training", total=None, state="")
        yield lambda step: progress.update(task, completed=step.step, total=step.steps, state=f"loss {step.loss:.3f}")


@contextmanager
def status(text: str) -> Iterator[None]:
    """Say on stderr that something takes a while, on a terminal only."""
    if not _stderr.is_terminal:
        yield
        return
    with _stderr.status(text):
        yield
