"""Reading datasets row by row; errors name the line."""

import csv
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from db.datasets.columns import Columns, new_rows
from db.errors import DatasetError
from db.submission import NewRow

STDIN = "-"
FORMATS = ("jsonl", "csv", "parquet")
PARQUET_BATCH_ROWS = 1000


def open_dataset(source: str, columns: Columns, file_format: str | None = None) -> Iterator[NewRow]:
    """The rows of a dataset, streamed.

    Args:
        source: a .jsonl, .csv or .parquet file, or `-` for JSONL on stdin.
        columns: which columns mean what.
        file_format: one of FORMATS where the file's name does not tell.

    Raises:
        DatasetError: the file is missing, empty, broken (the message names the line), or has no usable column; the
            later rows may raise it too, while they are read.
    """
    chosen = format_of(source, file_format)
    if source != STDIN and not Path(source).is_file():
        raise DatasetError(f"{source}: there is no such file")
    readers = {"jsonl": _read_jsonl, "csv": _read_csv, "parquet": _read_parquet}
    return new_rows(readers[chosen](source), columns, source)


def format_of(path: str, file_format: str | None) -> str:
    """The format of a file by its name, or as given.

    Raises:
        DatasetError: neither tells.
    """
    chosen = file_format or ("jsonl" if path == STDIN else Path(path).suffix.removeprefix(".").lower())
    chosen = {"ndjson": "jsonl", "json": "jsonl"}.get(chosen, chosen)
    if chosen not in FORMATS:
        raise DatasetError(f"{path}: its name does not end in .jsonl, .csv or .parquet; say --format")
    return chosen


def _lines(source: str) -> Iterator[str]:
    if source == STDIN:
        yield from sys.stdin
        return
    try:
        with Path(source).open(encoding="utf-8-sig", newline="") as file:
            yield from file
    except UnicodeDecodeError as error:
        raise DatasetError(f"{source}: is not UTF-8 text ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise DatasetError(f"{source}: cannot be read ({error.strerror})") from None


def _read_jsonl(source: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(_lines(source), 1):
        if not line.strip():
            continue
        try:
            row = DECODER.decode(line)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise DatasetError(f"{source}, line {number}: is not JSON ({reason})") from None
        if not isinstance(row, dict):
            raise DatasetError(f"{source}, line {number}: is not a JSON object")
        yield row


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
"""One for all lines: json.loads with an option would make one for each."""


def _read_csv(source: str) -> Iterator[dict[str, Any]]:
    reader = csv.DictReader(_lines(source), strict=True)
    try:
        for row in reader:
            if None in row:
                raise DatasetError(f"{source}, line {reader.line_num}: has more fields than the header")
            yield {name: value for name, value in row.items() if value is not None}
    except csv.Error as error:
        raise DatasetError(f"{source}, line {reader.line_num}: is not CSV ({error})") from None


def _read_parquet(source: str) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise DatasetError(f"{source}: Parquet needs pyarrow: pip install 'genarm[parquet]'") from None
    try:
        with pq.ParquetFile(source) as file:
            for batch in file.iter_batches(PARQUET_BATCH_ROWS):
                yield from _json_rows(batch.to_pylist(), source)
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{source}: is not Parquet ({str(error).splitlines()[0]})") from None


def _json_rows(rows: Iterable[dict[str, Any]], source: str) -> Iterator[dict[str, Any]]:
    """Rows whose times and the like became text, as JSON has none."""
    try:
        for row in rows:
            yield json.loads(json.dumps(row, default=str, allow_nan=False))
    except ValueError as error:
        raise DatasetError(f"{source}: has a value that JSON has not ({error})") from None
