"""Opening a dataset, whatever its format, as a stream of rows to store."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from db.datasets.columns import Columns, new_rows
from db.datasets.streams import STDIN
from db.datasets.tables import is_hub_name, read_hub, read_parquet
from db.datasets.text import PlacedRow, read_csv, read_jsonl
from db.errors import DatasetError
from db.submission import NewRow

FORMATS = ("jsonl", "csv", "parquet")
COMPRESSIONS = (".gz", ".zst", ".zstd")
HUB = "hf:"
"""Says that a source is a Hugging Face dataset where its name alone could be a file."""


@dataclass(frozen=True)
class DatasetSource:
    """Where rows come from."""

    name: str
    """A .jsonl, .csv or .parquet file (JSONL and CSV also with .gz or .zst), `-` for stdin, or a Hugging Face dataset:
    `owner/name`, `hf:name` or a folder."""
    columns: Columns = field(default_factory=Columns)
    file_format: str | None = None
    """One of FORMATS where the file's name does not tell."""
    config: str | None = None
    split: str | None = None
    """Of a Hugging Face dataset."""


def open_dataset(source: DatasetSource, samples: int = 1) -> Iterator[NewRow]:
    """The rows of a dataset, streamed.

    Args:
        source: the dataset.
        samples: completions that the job makes per row; OpenAI batch requests must not ask for another number.

    Raises:
        DatasetError: the dataset is missing, empty, broken (the message names the line), or has no usable column; the
            later rows may raise it too, while they are read.
    """
    return new_rows(placed_rows(source), source.columns, source.name.removeprefix(HUB), samples)


def placed_rows(source: DatasetSource) -> Iterator[PlacedRow]:
    """The rows of a dataset as they stand, streamed, each with its place; `source.columns` play no part.

    Raises:
        DatasetError: the dataset is missing or broken; the later rows may raise it too, while they are read.
    """
    name = source.name
    if name.startswith(HUB) or (not Path(name).is_file() and _means_hub(source)):
        return read_hub(name.removeprefix(HUB), source.config, source.split)
    if source.split or source.config:
        raise DatasetError(f"{name}: --split and --config are for Hugging Face datasets, and this is a file")
    if name != STDIN and not Path(name).is_file():
        raise DatasetError(f"{name}: there is no such file; a Hugging Face dataset is given as hf:NAME")
    chosen = format_of(name, source.file_format)
    if chosen == "parquet" and name == STDIN:
        raise DatasetError("Parquet cannot be read from stdin; give a file")
    return {"jsonl": read_jsonl, "csv": read_csv, "parquet": read_parquet}[chosen](name)


def _means_hub(source: DatasetSource) -> bool:
    has_file_name = _suffix(source.name) in {*FORMATS, "ndjson", "json"}
    return source.name != STDIN and not has_file_name and is_hub_name(source.name)


def format_of(path: str, file_format: str | None) -> str:
    """The format of a file by its name, or as given.

    Raises:
        DatasetError: neither tells, or it would be Parquet that is compressed once more.
    """
    chosen = file_format or ("jsonl" if path == STDIN else _suffix(path))
    chosen = {"ndjson": "jsonl", "json": "jsonl"}.get(chosen, chosen)
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
