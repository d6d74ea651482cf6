"""Rows of Parquet files and of Hugging Face datasets, as JSON has them."""

import base64
import math
from collections.abc import Iterable, Iterator
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, cast

from db.datasets.streams import BUFFER_BYTES, reason_of
from db.datasets.text import PlacedRow
from db.errors import DatasetError

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 128
"""Parquet rows in memory at once; a row may have a megabyte."""
REASON_CHARACTERS = 300
"""Of an error of `datasets`, which may go on for lines: the second has the names to choose from."""


def read_parquet(source: str) -> Iterator[PlacedRow]:
    """The rows of a Parquet file; nested columns become objects and lists. Memory does not grow with the file.

    Raises:
        DatasetError: it is not Parquet, cannot be read, has a value that Python lacks, or pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise DatasetError(f"{source}: Parquet needs pyarrow: pip install 'genarm[parquet]'") from None
    where = ""
    try:
        # Both options, or a row group is read as one: pandas writes all rows into one.
        with pq.ParquetFile(source, pre_buffer=False, buffer_size=BUFFER_BYTES) as file:
            for place, row in _placed(row for batch in file.iter_batches(BATCH_ROWS) for row in _rows_of(batch)):
                yield place, row
                where = f", after {place}"
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise DatasetError(f"{source}{where}: cannot be read as Parquet ({reason_of(error)})") from None


def _rows_of(batch: "pa.RecordBatch") -> Iterable[dict[str, Any]]:
    try:
        return cast(list[dict[str, Any]], batch.to_pylist())
    except (ValueError, OverflowError):  # a date after 9999, text that is not UTF-8: the rows before it come first
        return (row for index in range(batch.num_rows) for row in batch.slice(index, 1).to_pylist())


def read_hub(name: str, config: str | None, split: str | None) -> Iterator[PlacedRow]:
    """The rows of a Hugging Face dataset, or of a folder in its layout, streamed.

    Args:
        name: `owner/name` on the hub, or a local folder.
        config: which of its configurations; None: the only one.
        split: which split; None: `train`, or the only one.

    Raises:
        DatasetError: there is no such dataset, configuration or split, or `datasets` is not installed.
    """
    try:
        import datasets
    except ImportError:
        raise DatasetError(f"{name}: Hugging Face datasets need `datasets`: pip install 'genarm[datasets]'") from None
    try:
        found = datasets.load_dataset(name, config, streaming=True)
        chosen = _chosen_split(name, list(found), split)
        yield from _placed(found[chosen])
    except DatasetError:
        raise
    except Exception as error:  # datasets raises what its many readers raise
        reason = shorten(str(error), REASON_CHARACTERS) or type(error).__name__
        raise DatasetError(f"{name}: cannot be read as a Hugging Face dataset ({reason})") from None


def _chosen_split(name: str, splits: list[str], split: str | None) -> str:
    if split is None and len(splits) == 1:
        return splits[0]
    chosen = split or "train"
    if chosen not in splits:
        raise DatasetError(f"{name}: has no split {chosen!r} (its splits: {', '.join(splits)}); name one with --split")
    return chosen


def _placed(rows: Iterable[dict[str, Any]]) -> Iterator[PlacedRow]:
    for number, row in enumerate(rows, 1):
        yield f"row {number}", {name: _as_json(value) for name, value in row.items()}


def _as_json(value: Any) -> Any:
    """The value as JSON has it: times and the like as text, bytes as text or base64, NaN and infinities as null."""
    if isinstance(value, dict):
        return {str(name): _as_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    if isinstance(value, float | Decimal):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    return _as_text(value)


def _as_text(value: Any) -> str:
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    if not isinstance(value, bytes):
        return str(value)
    try:
        return value.decode()
    except UnicodeDecodeError:
        return base64.b64encode(value).decode()


def is_hub_name(source: str) -> bool:
    """True for `owner/name`, as the hub has it, and for folders; not for what would lie in a folder that is here."""
    if Path(source).is_dir():
        return True
    parts = source.split("/")
    return len(parts) == 2 and all(part and not part.startswith(".") for part in parts) and not Path(parts[0]).is_dir()
