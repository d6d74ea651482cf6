"""Opening a dataset, whatever its format, as a stream of rows to store."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from stat import S_ISDIR

from db.datasets.columns import Columns, new_rows
from db.datasets.csv_rows import read_csv
from db.datasets.folders import (
    Part,
    is_of_parts,
    is_saved_dataset,
    matching,
    parts_of,
    require_files_that_count,
    rows_of_parts,
)
from db.datasets.json_rows import PlacedRow, read_json
from db.datasets.streams import STDIN, reason_of
from db.datasets.tables import is_hub_name, read_hub, read_parquet, read_saved
from db.errors import DatasetError
from db.submission import NewRow

FORMATS = ("jsonl", "csv", "parquet")
ALSO_CALLED = {"ndjson": "jsonl", "json": "jsonl"}
TSV = "tsv"
"""Read as CSV; not written."""
COMPRESSIONS = (".gz", ".zst", ".zstd")
HUB = "hf:"
"""Says that a source is a Hugging Face dataset where its name alone could be a file."""


@dataclass(frozen=True)
class DatasetSource:
    """Where rows come from."""

    name: str
    """A .jsonl, .csv or .parquet file (JSONL and CSV also with .gz or .zst), a pattern or a folder of such files, `-`
    for stdin, or a Hugging Face dataset: `owner/name`, `hf:name` or a folder."""
    columns: Columns = field(default_factory=Columns)
    file_format: str | None = None
    """One of FORMATS where the file's name does not tell."""
    config: str | None = None
    split: str | None = None
    """Of a Hugging Face dataset."""
    has_unique_ids: bool = False
    """An id that is there twice is refused, not only that of a batch request."""


def open_dataset(source: DatasetSource, samples: int = 1) -> Iterator[NewRow]:
    """The rows of a dataset, streamed.

    Args:
        source: the dataset.
        samples: completions that the job makes per row; OpenAI batch requests must not ask for another number.

    Raises:
        DatasetError: the dataset is missing, empty, broken (the message names the line), or has no usable column; the
            later rows may raise it too, while they are read.
    """
    name = source.name.removeprefix(HUB)
    return new_rows(placed_rows(source), source.columns, name, samples, source.has_unique_ids)


def placed_rows(source: DatasetSource) -> Iterator[PlacedRow]:
    """The rows of a dataset as they stand, streamed, each with its place; `source.columns` play no part.

    Raises:
        DatasetError: the dataset is missing or broken; the later rows may raise it too, while they are read.
    """
    name = source.name
    is_there = name != STDIN and _mode_of(name)
    if name.startswith(HUB) or (not is_there and _means_hub(source)):
        return _read_hub(source)
    if is_there and S_ISDIR(is_there):
        return _read_folder(source)
    _require_no_split(source, "this is a file")
    if name == STDIN or is_there:
        return _reader_of(name, source.file_format)(name)
    if parts := matching(name):
        return _read_parts(parts, source)
    raise DatasetError(f"{name}: there is no such file; a Hugging Face dataset is given as hf:NAME")


def _mode_of(name: str) -> int:
    """Of a file or folder; 0 where there is none of this name.

    Raises:
        DatasetError: it cannot be looked for.
    """
    try:
        return Path(name).stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return 0
    except OSError as error:
        raise DatasetError(f"{name}: cannot be read ({reason_of(error)})") from None


def _read_hub(source: DatasetSource) -> Iterator[PlacedRow]:
    name = source.name.removeprefix(HUB)
    if S_ISDIR(_mode_of(name)):
        return _read_folder(source)
    return read_hub(name, source.config, source.split)


def _read_folder(source: DatasetSource) -> Iterator[PlacedRow]:
    """The rows of a folder: saved by Hugging Face datasets, of part files, or in the layout of the hub.

    Raises:
        DatasetError: it cannot be read.
    """
    name = source.name.removeprefix(HUB)
    folder = Path(name)
    try:
        require_files_that_count(folder)
        if is_saved_dataset(folder):
            if source.config is not None:
                raise DatasetError(f"{name}: --config is for datasets of the hub, and this folder is a saved one")
            return read_saved(name, source.split)
        if _has_file_name(name) or is_of_parts(folder):
            _require_no_split(source, "this is a folder of part files")
            return _read_parts(parts_of(folder), source)
    except OSError as error:
        raise DatasetError(f"{name}: cannot be read ({reason_of(error)})") from None
    return read_hub(name, source.config, source.split)


def _read_parts(parts: Sequence[Part], source: DatasetSource) -> Iterator[PlacedRow]:
    """The rows of several files of one format.

    Raises:
        DatasetError: they are of several.
    """
    found = {_input_format(str(part.path), source.file_format): part.name for part in parts}
    if len(found) > 1:
        one, other, *_ = found.values()
        raise DatasetError(f"{source.name}: has files of several formats ({one}, {other}); give those of one")
    read = _reader_of(str(parts[0].path), source.file_format)
    return rows_of_parts(parts, read)


def _require_no_split(source: DatasetSource, what: str) -> None:
    if source.split or source.config:
        raise DatasetError(f"{source.name}: --split and --config are for Hugging Face datasets, and {what}")


def _means_hub(source: DatasetSource) -> bool:
    return source.name != STDIN and not _has_file_name(source.name) and is_hub_name(source.name)


def _has_file_name(name: str) -> bool:
    return _suffix(name) in {*FORMATS, *ALSO_CALLED, TSV}


def _reader_of(path: str, file_format: str | None) -> Callable[[str], Iterator[PlacedRow]]:
    chosen = _input_format(path, file_format)
    if chosen == "parquet" and path == STDIN:
        raise DatasetError("Parquet cannot be read from stdin; give a file")
    if chosen == "csv":
        return partial(read_csv, separator="\t" if _suffix(path) == TSV else None)
    return read_json if chosen == "jsonl" else read_parquet


def _input_format(path: str, file_format: str | None) -> str:
    return format_of(path, file_format or ("csv" if _suffix(path) == TSV else None))


def format_of(path: str, file_format: str | None) -> str:
    """The format of a file by its name, or as given.

    Raises:
        DatasetError: neither tells, or it would be Parquet that is compressed once more.
    """
    chosen = file_format or ("jsonl" if path == STDIN else _suffix(path))
    chosen = ALSO_CALLED.get(chosen, chosen)
    if chosen not in FORMATS:
        raise DatasetError(
            f"{path}: its name does not end in .jsonl, .csv or .parquet (.gz and .zst may follow .jsonl and .csv); "
            "say --format"
        )
    if chosen == "parquet" and path.lower().endswith(COMPRESSIONS):
        raise DatasetError(f"{path}: Parquet is compressed inside; give a file that ends in .parquet and nothing more")
    return chosen


def _suffix(path: str) -> str:
    suffixes = Path(path).suffixes
    if suffixes and suffixes[-1].lower() in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1].removeprefix(".").lower() if suffixes else ""


def rows_in(path: str, file_format: str) -> int:
    """How many rows a file of results has; 0 for what is none."""
    chosen = "jsonl" if file_format not in FORMATS else file_format
    try:
        return sum(1 for _ in placed_rows(DatasetSource(path, file_format=chosen)))
    except DatasetError:
        return 0
