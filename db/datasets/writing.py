"""Writing rows to files, whole or not at all."""

import csv
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import IO, Any

from db.datasets.reading import format_of
from db.datasets.streams import STDIN
from db.errors import DatasetError

STDOUT = STDIN
PER_TOKEN = ("tokens", "logprobs", "base_logprobs", "token_rewards")
"""Left out of CSV."""
BATCH_ROWS = 1000


def write_rows(
    rows: Iterable[dict[str, Any]],
    target: str,
    file_format: str | None = None,
    on_rows: Callable[[int], None] | None = None,
) -> int:
    """Write output rows, and return how many.

    A file appears under its name when it is whole: it is written beside it and renamed.

    Args:
        rows: output rows.
        target: a .jsonl, .csv or .parquet file, or `-` for JSONL on stdout.
        file_format: the format where the name does not tell.
        on_rows: called with the number of rows written so far.

    Raises:
        DatasetError: the file cannot be written.
    """
    chosen = format_of(target, file_format)
    writers: dict[str, Callable[[Iterable[dict[str, Any]], Any], None]] = {
        "jsonl": _write_jsonl,
        "csv": _write_csv,
        "parquet": _write_parquet,
    }
    counted = _Counted(rows, on_rows)
    if target == STDOUT:
        _write_jsonl(counted, sys.stdout)
    else:
        with _whole_file(Path(target), is_binary=chosen == "parquet") as file:
            writers[chosen](counted, file)
    return counted.count


class _Counted:
    def __init__(self, rows: Iterable[dict[str, Any]], on_rows: Callable[[int], None] | None) -> None:
        self._rows, self._on_rows, self.count = rows, on_rows, 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for row in self._rows:
            yield row
            self.count += 1
            if self._on_rows is not None:
                self._on_rows(self.count)


@contextmanager
def _whole_file(target: Path, is_binary: bool) -> Iterator[IO[Any]]:
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        file: IO[Any] = part.open("wb") if is_binary else part.open("w", encoding="utf-8", newline="")
        with file:
            yield file
        part.replace(target)
    except OSError as error:
        raise DatasetError(f"{target}: cannot be written ({error.strerror})") from None
    finally:
        with suppress(OSError):
            part.unlink()


def _write_jsonl(rows: Iterable[dict[str, Any]], file: IO[str]) -> None:
    for row in rows:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _write_csv(rows: Iterable[dict[str, Any]], file: IO[str]) -> None:
    writer: Any = None
    for row in rows:
        flat = {name: _cell(value) for name, value in row.items() if name not in PER_TOKEN}
        if writer is None:
            names = dict.fromkeys(["id", "sample", "completion", "finish_reason", "error", *flat])
            writer = csv.DictWriter(file, list(names), extrasaction="ignore")
            writer.writeheader()
        writer.writerow(flat)


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value


def _write_parquet(rows: Iterable[dict[str, Any]], file: IO[bytes]) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise DatasetError("Parquet needs pyarrow: pip install 'genarm[parquet]'") from None
    writer: Any = None
    iterator = iter(rows)
    try:
        while batch := list(islice(iterator, BATCH_ROWS)):
            table = pa.Table.from_pylist(batch, schema=writer.schema if writer else None)
            writer = writer or pq.ParquetWriter(file, table.schema)
            writer.write_table(table)
    except pa.ArrowException as error:
        raise DatasetError(f"the rows do not fit into one Parquet schema ({str(error).splitlines()[0]})") from None
    finally:
        if writer is not None:
            writer.close()
