"""All printing: facts on stdout, everything else on stderr, progress bars on a terminal only."""

import json
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Any, cast

import click
from rich.console import Console, Group
from rich.live import Live
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
from rich.text import Text

from db.jobs import JobProgress

_stderr = Console(stderr=True, highlight=False, soft_wrap=True)
LINES_WITHOUT_BARS = 10
"""Of long work whose stderr is a file, evenly over it."""


def use_utf8() -> None:
    """Write UTF-8 wherever output goes, whatever the locale says: files, pipes, and terminals, which all read it today.

    A stream that is closed is replaced by one that goes nowhere.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - for as long as the process lives
        cast(TextIOWrapper, getattr(sys, name)).reconfigure(encoding="utf-8", errors="backslashreplace")


def drop_stdout() -> None:
    """Let what is still buffered for stdout go nowhere: it could not be written."""
    with suppress(OSError, ValueError):  # a stream of a test has no descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
    with suppress(OSError):  # the terminal is gone
        _stderr.print(text, markup=False)


def agreed(question: str) -> bool:
    """Ask on stderr, and say so where the answer is no; who cannot answer, for lack of a terminal, says no.

    Raises:
        click.Abort: Ctrl-C.
    """
    try:
        answer = click.confirm(question, err=True)
    except click.Abort as abort:
        if not isinstance(abort.__context__, EOFError):
            raise
        answer = False
        note("")
    if not answer:
        note("Nothing was changed.")
    return answer


def note_in_signal(text: str) -> None:
    """A note from a signal handler, which may have come in the middle of a line that rich writes."""
    with suppress(OSError):
        os.write(sys.stderr.fileno(), f"{text}\n".encode())


def error(text: str) -> None:
    """What went wrong, on stderr."""
    with suppress(OSError):
        print(f"Error: {text}", file=sys.stderr, flush=True)


def is_terminal() -> bool:
    """Whether people read stdout as it comes."""
    return sys.stdout.isatty()


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table on stdout; on a terminal, columns but the first (ids, names) are folded to its width. Nothing is cut."""
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for place, column in enumerate(columns):
        grid.add_column(column, overflow="fold", no_wrap=place == 0)
    for row in rows:
        grid.add_row(*("" if cell is None else str(cell) for cell in row))
    Console(width=None if is_terminal() else 10_000, markup=False, highlight=False).print(grid)


def line_is_due(before: int, done: int, total: int) -> bool:
    """Whether a log gets a line, where between `before` and `done` of `total` a tenth was completed."""
    return done * LINES_WITHOUT_BARS // total > before * LINES_WITHOUT_BARS // total


class JobView:
    """A job as it runs: a bar of its rows, and a line with speed, workers, failures and the time left.

    In a log it is a line at each tenth of the rows.
    """

    def __init__(self, live: Live, name: str) -> None:
        self._live = live
        self._bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("rows"))
        self._task = self._bar.add_task(name, total=None)
        self._name = name
        self._shown_rows = 0
        self._speed = RecentSpeed()

    def show(self, now: JobProgress) -> None:
        """Draw how far the job is."""
        rows, total = now.completed_rows + now.failed_rows, now.job.total_rows
        state = state_line(now, self._speed.of(now))
        if self._live.is_started:
            self._bar.update(self._task, completed=rows, total=total)
            self._live.update(Group(self._bar, Text("  " + state, style="dim")))
        elif rows < total and line_is_due(self._shown_rows, rows, total):
            note(f"{self._name}: {rows} of {total} rows · {state}")
            self._shown_rows = rows


class RecentSpeed:
    """Tokens per second of late: the mean since the start forgets slowly that models were loaded first."""

    def __init__(self, seconds: float = 10.0) -> None:
        self._seconds = seconds
        self._seen: deque[tuple[float, int]] = deque()

    def of(self, now: JobProgress) -> float:
        """Take another look into account."""
        moment = now.seconds or 0.0
        self._seen.append((moment, now.generated_tokens))
        while len(self._seen) > 2 and self._seen[1][0] <= moment - self._seconds:
            self._seen.popleft()
        (before, tokens), (after, more) = self._seen[0], self._seen[-1]
        return (more - tokens) / (after - before) if after > before else 0.0


def state_line(now: JobProgress, tokens_per_second: float) -> str:
    """A job's state in a line."""
    parts = [
        now.job.status.value.replace("_", " "),
        f"{tokens_per_second:,.0f} tokens/s" if tokens_per_second else "",
        f"{now.workers} worker{'s' if now.workers > 1 else ''}" if now.workers else "",
        f"{now.failed_rows} failed" if now.failed_rows else "",
        f"{_duration(now.seconds)} so far" if now.seconds else "",
        f"{_duration(now.eta_seconds)} left" if now.eta_seconds else "",
    ]
    return " · ".join(part for part in parts if part)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


@contextmanager
def job_view(name: str) -> Iterator[JobView]:
    """Show a job on stderr while the block runs."""
    live = Live(console=_stderr, refresh_per_second=4)
    if not _stderr.is_terminal:
        yield JobView(live, name)
        return
    with live:
        yield JobView(live, name)


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


class TrainingBars:
    """Bars of a training: of its steps, and of what it does between them."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    @property
    def are_seen(self) -> bool:
        """Whether stderr is a terminal."""
        return not self._progress.disable

    def show(self, what: str, done: int, total: int | None, state: str = "", *, stays: bool = False) -> None:
        """Draw how far something is; its bar goes when it is done, unless it `stays`."""
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total, state=state)
        is_visible = stays or done != total
        self._progress.update(self._tasks[what], completed=done, total=total, state=state, visible=is_visible)

    def hide(self, what: str) -> None:
        """Take away the bar of something whose end nobody knew."""
        if what in self._tasks:
            self._progress.update(self._tasks[what], visible=False)


@contextmanager
def training_bars() -> Iterator[TrainingBars]:
    """Bars on stderr while the block runs; nothing where stderr is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[state]}"))
    with Progress(*columns, TimeRemainingColumn(), console=_stderr, disable=not _stderr.is_terminal) as progress:
        yield TrainingBars(progress)


@contextmanager
def status(text: str) -> Iterator[None]:
    """Say on stderr that something takes a while, on a terminal only."""
    if not _stderr.is_terminal:
        yield
        return
    with _stderr.status(text):
        yield
