"""Writing files, whole or not at all."""

import csv
import gzip
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from db.datasets.reading import COMPRESSIONS
from db.datasets.streams import STDIN
from db.errors import DatasetError

if TYPE_CHECKING:
    import pyarrow as pa

STDOUT = STDIN
TABLE_ROWS = 1000
GROUP_ROWS = 50_000
GROUP_BYTES = 64 << 20
HALF_PAIRS = "backslashreplace"
"""How text is written that holds half of a surrogate pair, which UTF-8 lacks: as JSON escapes it, \\ud800."""


@contextmanager
def whole_file(target: str, is_binary: bool = False) -> Iterator[IO[Any]]:
    """A file to write, UTF-8 text or bytes, that appears under its name when the block ends without an error.

    It is written beside its place and renamed; one that was there stays until then. A name that ends in .gz or .zst
    is compressed. `-` is stdout.

    Raises:
        DatasetError: the file cannot be written.
    """
    if target == STDOUT:
        cast(TextIOWrapper, sys.stdout).reconfigure(encoding="utf-8", errors=HALF_PAIRS)
        yield sys.stdout
        sys.stdout.flush()
        return
    is_special = not is_renamed(target)
    path = Path(target) if is_special else Path(target).resolve()
    part = path if is_special else path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as raw, _compressed(raw, path.suffix.lower()) as packed, _text(packed, is_binary) as file:
            yield file
        if not is_special:
            _sync(part)
            part.replace(path)
    except OSError as error:
        raise DatasetError(f"{target}: cannot be written ({error.strerror or error})") from None
    finally:
        with suppress(OSError):
            if not is_special:
                part.unlink()


def is_renamed(target: str) -> bool:
    """Whether `whole_file` keeps its promise there: not for stdout, a pipe, /dev/null."""
    return target != STDOUT and (Path(target).is_file() or not Path(target).exists())


def _sync(path: Path) -> None:
    """After a crash of the machine the name must not stand for half a file."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def _text(packed: IO[bytes], is_binary: bool) -> Iterator[IO[Any]]:
    if is_binary:
        yield packed
        return
    text = TextIOWrapper(cast(Any, packed), encoding="utf-8", errors=HALF_PAIRS, newline="")
    yield text
    text.flush()
    text.detach()


@contextmanager
def _compressed(raw: IO[bytes], suffix: str) -> Iterator[IO[bytes]]:
    if suffix not in COMPRESSIONS:
        yield raw
    elif suffix == ".gz":
        with gzip.GzipFile(fileobj=raw, mode="wb", filename="", mtime=0) as packed:
            yield cast(IO[bytes], packed)
    else:
        with require_pyarrow().CompressedOutputStream(raw, "zstd") as packed:
            yield packed


def check_target(target: str, file_format: str) -> None:
    """Find out before the work that a file could not be written after it.

    Raises:
        DatasetError: its folder is missing or may not be written to, it is a folder, or pyarrow is missing.
    """
    if file_format == "parquet" or target.lower().endswith(COMPRESSIONS[1:]):
        require_pyarrow()
    if target == STDOUT:
        if file_format == "parquet":
            raise DatasetError("Parquet cannot be written to stdout; give a file")
        return
    folder = Path(target).parent
    if Path(target).is_dir():
        raise DatasetError(f"{target}: is a folder; give the name of a file")
    if not folder.is_dir():
        raise DatasetError(f"{target}: there is no folder {folder}; make it first")
    if not os.access(folder, os.W_OK):
        raise DatasetError(f"{target}: the folder {folder} may not be written to: permission denied, or read-only")


def require_pyarrow() -> Any:
    """The module pyarrow.

    Raises:
        DatasetError: it is not installed.
    """
    try:
        import pyarrow as pa
    except ImportError:
        raise DatasetError("Parquet and zstd need pyarrow: pip install 'genarm[parquet]'") from None
    return pa


def write_jsonl(rows: Iterable[dict[str, Any]], file: IO[str]) -> None:
    """A JSON object per line; on stdout each is there at once."""
    for row in rows:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
        _flush_stream(file)


def write_csv(rows: Iterable[dict[str, Any]], columns: Sequence[str], file: IO[str]) -> None:
    """A header and a line per row, on stdout each at once; what is no text or number is written as JSON.

    Raises:
        ValueError: a row has a column that is not named.
    """
    writer = csv.DictWriter(file, columns)
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _cell(value) for name, value in row.items()})
        _flush_stream(file)


def _flush_stream(file: IO[str]) -> None:
    if file is sys.stdout:
        file.flush()


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value


def write_parquet(tables: Iterable["pa.Table"], schema: "pa.Schema", file: IO[bytes]) -> None:
    """Tables of one schema, put together to row groups of GROUP_ROWS or GROUP_BYTES: small ones are slow to read."""
    import pyarrow.parquet as pq

    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for group in _groups(tables):
            writer.write_table(group)


def _groups(tables: Iterable["pa.Table"]) -> Iterator["pa.Table"]:
    group: list[pa.Table] = []
    rows = size = 0
    for table in tables:
        group.append(table)
        rows, size = rows + table.num_rows, size + table.nbytes
        if rows >= GROUP_ROWS or size >= GROUP_BYTES:
            yield require_pyarrow().concat_tables(group)
            group, rows, size = [], 0, 0
    if group:
        yield require_pyarrow().concat_tables(group)


def tables_of(rows: Iterable[dict[str, Any]], schema: "pa.Schema") -> Iterator["pa.Table"]:
    """Rows as tables."""
    iterator = iter(rows)
    while batch := list(islice(iterator, TABLE_ROWS)):
        yield require_pyarrow().Table.from_pylist(batch, schema=schema)
