"""Rows of JSONL and CSV; errors name the line."""

import csv
import json
from collections.abc import Iterator
from typing import Any, NoReturn, TypeAlias

from db.datasets.streams import LONGEST_LINE_BYTES, text_lines
from db.errors import DatasetError

PlacedRow: TypeAlias = tuple[str, dict[str, Any]]
"""Where a row stands in its source ("line 7"), and the row."""


def read_jsonl(source: str) -> Iterator[PlacedRow]:
    """The objects of a JSONL file; blank lines are skipped.

    Raises:
        DatasetError: a line is not a JSON object.
    """
    for number, line in enumerate(text_lines(source), 1):
        if not line.strip():
            continue
        place = f"line {number}"
        try:
            row = DECODER.decode(line)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise DatasetError(f"{source}, {place}: is not JSON ({reason})") from None
        if not isinstance(row, dict):
            raise DatasetError(f"{source}, {place}: is not a JSON object")
        yield place, row


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{text} is too large for a number")
    return number


DECODER = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite)
"""One for all lines: json.loads with options would make one for each."""


def read_csv(source: str) -> Iterator[PlacedRow]:
    """The rows of a CSV file with a header; cells are text.

    Raises:
        DatasetError: the header is missing or ambiguous, or a row does not fit it; the line named is the row's first.
    """
    csv.field_size_limit(LONGEST_LINE_BYTES)
    reader = csv.reader(text_lines(source), strict=True)
    begins = 1
    try:
        header = next(reader, [])
        _require_unique(header, source)
        begins = reader.line_num + 1
        for cells in reader:
            place, begins = f"line {begins}", reader.line_num + 1
            if not cells:
                continue
            if len(cells) != len(header):
                difference = "more" if len(cells) > len(header) else "fewer"
                raise DatasetError(
                    f"{source}, {place}: has {difference} fields than the header ({len(cells)}, not {len(header)})"
                )
            yield place, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise DatasetError(f"{source}, line {begins}: is not CSV ({error})") from None


def _require_unique(header: list[str], source: str) -> None:
    for name in header:
        if header.count(name) > 1:
            raise DatasetError(f"{source}, line 1: two columns are named {name!r}")
