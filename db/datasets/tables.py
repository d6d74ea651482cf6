"""Rows of Parquet files and of Hugging Face datasets, as JSON has them."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, cast

from db.datasets.json_rows import PlacedRow
from db.datasets.streams import BUFFER_BYTES, reason_of
from db.datasets.values import json_row
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
        DatasetError: it is not Parquet, cannot be read, has two columns of one name, a value that Python lacks or a map
            with a key twice, or pyarrow is not installed.
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
            _require_unique(file.schema_arrow.names)
            for place, row in _placed(row for batch in file.iter_batches(BATCH_ROWS) for row in _rows_of(batch)):
                yield place, row
                where = f", after {place}"
    except (pa.ArrowException, OSError, ValueError, OverflowError, KeyError) as error:
        raise DatasetError(f"{source}{where}: cannot be read as Parquet ({reason_of(error)})") from None


def _require_unique(names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two columns are named {name!r}; rename one")


def _rows_of(batch: "pa.RecordBatch") -> Iterable[dict[str, Any]]:
    try:
        return _as_rows(batch)
    except (ValueError, OverflowError, KeyError):  # a date after 9999, text that is not UTF-8: those before it first
        return (row for index in range(batch.num_rows) for row in _as_rows(batch.slice(index, 1)))


def _as_rows(batch: "pa.RecordBatch") -> list[dict[str, Any]]:
    return cast(list[dict[str, Any]], batch.to_pylist(maps_as_pydicts="strict"))


def read_hub(name: str, config: str | None, split: str | None) -> Iterator[PlacedRow]:
    """The rows of a Hugging Face dataset, or of a folder in its layout, streamed.

    Args:
        name: `owner/name` on the hub, or a local folder.
        config: which of its configurations; None: the only one.
        split: which split; None: `train`, or the only one.

    Raises:
        DatasetError: there is no such dataset, configuration or split, or `datasets` is not installed.
    """
    yield from _of_datasets(name, split, lambda datasets: datasets.load_dataset(name, config, streaming=True))


def read_saved(folder: str, split: str | None) -> Iterator[PlacedRow]:
    """The rows of a folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote; `split` as in `read_hub`.

    Raises:
        DatasetError: it cannot be read, has no such split, or `datasets` is not installed.
    """

    def load(datasets: Any) -> Any:
        found = datasets.load_from_disk(folder)
        if split is not None and not isinstance(found, dict):
            raise DatasetError(f"{folder}: has no splits; leave out --split")
        splits = found if isinstance(found, dict) else {"train": found}
        return {name: dataset.to_iterable_dataset() for name, dataset in splits.items()}

    yield from _of_datasets(folder, split, load)


def _of_datasets(name: str, split: str | None, load: Callable[[Any], Any]) -> Iterator[PlacedRow]:
    try:
        import datasets
    except ImportError:
        raise DatasetError(f"{name}: Hugging Face datasets need `datasets`: pip install 'genarm[datasets]'") from None
    try:
        found = load(datasets)
        chosen = found[_chosen_split(name, list(found), split)]
        yield from _placed(_undecoded(chosen))
    except DatasetError:
        raise
    except Exception as error:  # datasets raises what its many readers raise
        reason = shorten(str(error), REASON_CHARACTERS) or type(error).__name__
        raise DatasetError(f"{name}: cannot be read as a Hugging Face dataset ({reason})") from None


def _undecoded(rows: Any) -> Any:
    """Images and the like as the bytes that they are stored as, not as objects of Python."""
    return rows.decode(False) if getattr(rows, "features", None) else rows


def _chosen_split(name: str, splits: list[str], split: str | None) -> str:
    if split is None and len(splits) == 1:
        return splits[0]
    chosen = split or "train"
    if chosen not in splits:
        raise DatasetError(f"{name}: has no split {chosen!r} (its splits: {', '.join(splits)}); name one with --split")
    return chosen


def _placed(rows: Iterable[dict[str, Any]]) -> Iterator[PlacedRow]:
    for number, row in enumerate(rows, 1):
        yield f"row {number}", json_row(row)


def is_hub_name(source: str) -> bool:
    """True for `owner/name`, as the hub has it; not for what would lie in a folder that is here."""
    parts = source.split("/")
    return len(parts) == 2 and all(part and not part.startswith(".") for part in parts) and not Path(parts[0]).is_dir()
