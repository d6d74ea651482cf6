"""One export of a job's results to a file."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

from db.datasets.reading import format_of, rows_in
from db.datasets.writing import (
    check_target,
    is_renamed,
    require_pyarrow,
    tables_of,
    whole_file,
    write_csv,
    write_jsonl,
    write_parquet,
)
from db.errors import DatasetError
from db.exports.batch_results import batch_results, require_unique_ids
from db.exports.choosing import Chooser
from db.jobs import Job, progress
from db.results import OWN_COLUMNS, export_groups, export_rows, input_rows, passed_on
from db.session import Ledger
from db.spans import Span, all_spans

OPENAI = "openai"
PER_TOKEN = ("tokens", "logprobs", "base_logprobs", "token_rewards")
"""Left out of CSV."""
FLATTENED = ("rewards", "error")
"""In CSV a column for each field."""
PLAIN = tuple(name for name in OWN_COLUMNS if name not in (*PER_TOKEN, *FLATTENED))
LIKE: dict[str, dict[str, Any]] = {
    "preference": dict.fromkeys(("id", "prompt", "chosen", "rejected"), "")
    | dict.fromkeys(("chosen_reward", "rejected_reward"), 0.0),
    "sft": {"id": "", "prompt": "", "completion": "", "reward": 0.0},
}
"""The columns of a table that gets no row."""

T = TypeVar("T")


@dataclass(frozen=True)
class Export:
    """What to write, and where to."""

    target: str
    """A file, or `-` for stdout."""
    file_format: str | None = None
    """jsonl, csv, parquet or openai where the name does not tell."""
    shape: Literal["completions", "preference", "sft"] = "completions"
    by: dict[str, float] | None = None
    """Weight by ARM to choose by; None: those that a row was generated with."""
    per_token: bool = False

    @property
    def chosen_format(self) -> str:
        """The format.

        Raises:
            DatasetError: the name does not tell.
        """
        if self.file_format == OPENAI:
            return OPENAI
        return format_of(self.target, self.file_format)


@dataclass(frozen=True)
class Exported:
    """What was written."""

    rows: int
    skipped: int = 0
    """Rows of the input that gave no pair, or no best completion."""


def check_export(wanted: Export, arms: Sequence[str], samples: int, is_sweep: bool) -> None:
    """Find out before the work what would stop the export after it.

    Args:
        wanted: what to write, and where to.
        arms: the names of the job's ARMs.
        samples: completions that it makes per row.
        is_sweep: whether it is a sweep.

    Raises:
        DatasetError: the target cannot be written, or the job has not what is asked for.
    """
    chosen = wanted.chosen_format
    check_target(wanted.target, chosen)
    if wanted.shape != "completions":
        if chosen == OPENAI:
            raise DatasetError("--format openai writes completions; leave out --as")
        if not arms:
            raise DatasetError(f"--as {wanted.shape}: the job has no ARM, so that there is no reward to choose by")
        for name in wanted.by or ():
            if name not in arms:
                raise DatasetError(f"--by {name}: is no ARM of the job (it has: {', '.join(arms)})")
        if samples < 2 and wanted.shape == "preference":
            raise DatasetError(
                "--as preference: the job has one sample per row, and pairs need several; "
                "submit it with --samples 2 or more"
            )
    if chosen == OPENAI and is_sweep:
        raise DatasetError(
            "the job is a sweep, with several results for each custom_id; OpenAI's format has one: export it as .jsonl"
        )


def export(
    ledger: Ledger,
    job: Job,
    wanted: Export,
    spans: Iterable[Span] | None = None,
    on_rows: Callable[[int], None] = lambda count: None,
) -> Exported:
    """Write a job's results, whole or not at all, in bounded memory.

    Args:
        ledger: the database.
        job: the job.
        wanted: what to write, and where to.
        spans: which rows of the input; all where not given.
        on_rows: called with the number of rows written so far.

    Raises:
        DatasetError: as `check_export`, or the file cannot be written, or has more rows than the job's outcomes so far.
        DatabaseUnreachableError: the database does not answer.
    """
    check_export(wanted, job.arms, job.samples, bool(job.sweep))
    chosen = wanted.chosen_format
    if chosen == OPENAI:
        require_unique_ids(ledger, job)
    chooser = Chooser(job, wanted.by, wanted.per_token)
    counted = _Counted(on_rows)
    spans = all_spans(ledger, job.id) if spans is None else spans
    with whole_file(wanted.target, is_binary=chosen == "parquet") as file:
        if chosen == OPENAI:
            write_jsonl(counted.each(batch_results(ledger, job, spans)), file)
        elif wanted.shape == "completions":
            _write_completions(ledger, job, chosen, spans, counted, file)
        else:
            groups = export_groups(ledger, job.id, spans)
            rows = chooser.pairs(groups) if wanted.shape == "preference" else chooser.best(groups)
            _write_chosen(counted.each(rows), chosen, wanted.shape, file)
        _require_no_loss(ledger, job, wanted, counted.count)
    return Exported(counted.count, chooser.skipped)


def _require_no_loss(ledger: Ledger, job: Job, wanted: Export, count: int) -> None:
    """A file may be replaced by the whole of another job, but not by a part of one that has fewer rows than the file.

    Raises:
        DatasetError: that would happen.
    """
    if not is_renamed(wanted.target) or not Path(wanted.target).is_file():
        return
    pending = progress(ledger, job.id).pending_rows
    if pending and (there := rows_in(wanted.target, wanted.chosen_format)) > count:
        raise DatasetError(
            f"{wanted.target}: has {there} rows and stays as it is, since {pending} of the {job.total_rows} rows of "
            f"{job.id} have no outcome yet: do them with genarm job retry {job.id}, or name another file"
        )


class _Counted:
    def __init__(self, on_rows: Callable[[int], None]) -> None:
        self._on_rows, self.count = on_rows, 0

    def each(self, items: Iterable[T], rows_of: Callable[[T], int] = lambda item: 1) -> Iterator[T]:
        for item in items:
            yield item
            self.count += rows_of(item)
            self._on_rows(self.count)


def _write_completions(
    ledger: Ledger, job: Job, chosen: str, spans: Iterable[Span], counted: _Counted, file: IO[Any]
) -> None:
    if chosen == "parquet":
        from db.columnar import ArrowResults

        results = ArrowResults.of(ledger, job.id)
        write_parquet(counted.each(results.tables(iter(spans)), lambda table: table.num_rows), results.schema, file)
        return
    rows = counted.each(export_rows(ledger, job.id, spans))
    if chosen == "jsonl":
        write_jsonl(rows, file)
    else:
        own = _own_csv_columns(job)
        write_csv((_flat(row, own) for row in rows), [*own, *_passed_csv_columns(ledger, job, own)], file)


def _own_csv_columns(job: Job) -> list[str]:
    """Those of an output row without lists, with a column for each ARM's reward."""
    return [*PLAIN, *(f"rewards.{arm}" for arm in job.arms), "error.code", "error.message"]


def _flat(row: dict[str, Any], own: Sequence[str]) -> dict[str, Any]:
    """An output row in these columns, and what the input had."""
    fields = {f"{name}.{key}": value for name in FLATTENED for key, value in (row.get(name) or {}).items()}
    plain = {name: row[name] for name in PLAIN if name in row}
    return plain | fields | passed_on({name: row[name] for name in row if name not in OWN_COLUMNS}, own)


def _passed_csv_columns(ledger: Ledger, job: Job, own: Sequence[str]) -> list[str]:
    """The columns of the input that any row has, as they come out."""
    passed: dict[str, None] = {}
    for span in all_spans(ledger, job.id):
        for _, row in input_rows(ledger, job.id, span):
            passed |= dict.fromkeys(passed_on(passed_on(row), own))
    return list(passed)


def _write_chosen(rows: Iterator[dict[str, Any]], chosen: str, shape: str, file: IO[Any]) -> None:
    if chosen == "jsonl":
        write_jsonl(rows, file)
        return
    first = next(rows, None)
    like = first or LIKE[shape]
    rows = _of_one_form(chain([first] if first else [], rows), like)
    if chosen == "csv":
        if shape == "preference" and _is_chat(like):
            raise DatasetError("pairs of chats are lists of messages, which CSV cannot hold; export them as .jsonl")
        write_csv(rows, list(like), file)
    else:
        pa = require_pyarrow()
        messages = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
        kinds = {list: messages, float: pa.float64(), str: pa.string()}
        with_text_ids = ({**row, "id": str(row["id"])} for row in rows)
        schema = pa.schema([(name, kinds[type(value)]) for name, value in {**like, "id": ""}.items()])
        write_parquet(tables_of(with_text_ids, schema), schema, file)


def _of_one_form(rows: Iterable[dict[str, Any]], like: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows, which are all prompts or all chats: a column of a table has one type."""
    for row in rows:
        if _is_chat(row) != _is_chat(like):
            raise DatasetError("the job has prompts and chats, which one table cannot hold; export them as .jsonl")
        yield row


def _is_chat(row: dict[str, Any]) -> bool:
    return "messages" in row or isinstance(row["prompt"], list)
