"""Datasets of several files: folders as Spark, Hive and pyarrow write them, and patterns of names."""

import glob
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from db.datasets.json_rows import PlacedRow
from db.errors import DatasetError

NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
PARTITION = re.compile(r"([^=]+)=(.*)", re.DOTALL)
INT32 = range(-(2**31), 2**31)
WITH_A_LOG = {
    "_delta_log": "a Delta table",
    ".hoodie": "a Hudi table",
    "metadata/version-hint.text": "an Iceberg table",
    "metadata/*.metadata.json": "an Iceberg table",
}
"""Tables whose log says which of their files count."""


@dataclass(frozen=True)
class Part:
    """One of the files of a dataset."""

    path: Path
    name: str
    """For messages, from the folder on."""
    partition: dict[str, int | str | None] = field(default_factory=dict)
    """Columns that the names of its folders say."""


def is_saved_dataset(folder: Path) -> bool:
    """Whether `save_to_disk` of Hugging Face datasets wrote the folder."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    )


def is_of_parts(folder: Path) -> bool:
    """Whether the folder stands for one file: Spark's mark of success is in it, or folders of a partition."""
    return (folder / "_SUCCESS").is_file() or any(
        PARTITION.fullmatch(child.name) and child.is_dir() for child in folder.iterdir()
    )


def require_files_that_count(folder: Path) -> None:
    """Make sure that all files of a folder are of its newest state.

    Raises:
        DatasetError: it is a table with a log, whose files may be old ones.
    """
    for mark, what in WITH_A_LOG.items():
        if any(folder.glob(mark)):
            raise DatasetError(f"{folder}: is {what}, some files of which may be old; export it as Parquet or JSONL")


def parts_of(folder: Path) -> list[Part]:
    """The files in a folder and the folders in it, by name; those that begin with `_` or `.` are no data.

    Raises:
        DatasetError: there is none.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and _is_data(path.relative_to(folder)))
    if not paths:
        raise DatasetError(f"{folder}: the folder has no files of data")
    names = [path.relative_to(folder) for path in paths]
    partitions = _typed([_partition_of(name) for name in names])
    return [Part(path, str(name), partition) for path, name, partition in zip(paths, names, partitions, strict=True)]


def _is_data(name: Path) -> bool:
    return not any(part.startswith((".", "_")) for part in name.parts)


def _partition_of(name: Path) -> dict[str, str | None]:
    found = (PARTITION.fullmatch(part) for part in name.parts[:-1])
    values = {unquote(one[1]): unquote(one[2]) for one in found if one is not None}
    return {key: None if value == NULL_PARTITION else value for key, value in values.items()}


def _typed(partitions: Sequence[dict[str, str | None]]) -> list[dict[str, int | str | None]]:
    """A column is of integers where all of its values are such, as pyarrow has it."""
    whole = {
        key for key in {key for one in partitions for key in one}
        if all(_is_int32(one[key]) for one in partitions if one.get(key) is not None)
    }  # fmt: skip
    return [
        {key: int(value) if value is not None and key in whole else value for key, value in one.items()}
        for one in partitions
    ]


def _is_int32(text: str | None) -> bool:
    return text is not None and re.fullmatch(r"-?[0-9]{1,20}", text) is not None and int(text) in INT32


def matching(pattern: str) -> list[Part]:
    """The files that a pattern like `data/*.jsonl` stands for, by name; none where it is no pattern.

    Raises:
        DatasetError: it stands for no file, or for a folder.
    """
    if not glob.has_magic(pattern):
        return []
    names = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - Path has no pattern from the root
    folders = [name for name in names if Path(name).is_dir()]
    if folders and "**" not in pattern:
        raise DatasetError(f"{pattern}: {folders[0]} is a folder; write a pattern of files alone")
    files = [Part(Path(name), name) for name in names if name not in folders]
    if not files:
        raise DatasetError(f"{pattern}: there is no such file, and none that is like this pattern")
    return files


def rows_of_parts(parts: Sequence[Part], read: Callable[[str], Iterator[PlacedRow]]) -> Iterator[PlacedRow]:
    """The rows of all files, one after the other, with the columns of their partition.

    Raises:
        DatasetError: one cannot be read, or has a column that its folder names otherwise.
    """
    for part in parts:
        for place, row in read(str(part.path)):
            yield f"{part.name}, {place}", _with_partition(row, part)


def _with_partition(row: dict[str, Any], part: Part) -> dict[str, Any]:
    for key, value in part.partition.items():
        if key in row and row[key] != value:
            raise DatasetError(f"{part.path}: its rows have a column {key!r}, and its folder gives another value")
    return row | part.partition
