"""Rows of CSV files, with the separators that spreadsheets write."""

import csv
import re
from collections.abc import Iterable, Iterator
from itertools import chain

from db.datasets.json_rows import PlacedRow
from db.datasets.streams import BUFFER_BYTES, LONGEST_LINE_BYTES, text_lines
from db.errors import DatasetError

QUOTED = re.compile(r'"[^"]*"?')
SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}
"""Beside the comma."""
SAID = re.compile(r'"?sep=([,;|\t])"?\s*\Z')
"""A first line by which Excel is told the separator."""
JSON_BEGINS = ('{"', "[{")
AFTER_LONE_CR = re.compile(r"(?<=\r)(?!\n)")


def read_csv(source: str, separator: str | None = None) -> Iterator[PlacedRow]:
    """The rows of a CSV file with a header; cells are text.

    Args:
        source: the file, or `-`.
        separator: between cells; None: the comma, or where the header has none, the semicolon, tab or bar that it has.

    Raises:
        DatasetError: the header is missing or ambiguous, or a row does not fit it; the line named is the row's first.
    """
    csv.field_size_limit(LONGEST_LINE_BYTES)
    lines = _split_at_cr(text_lines(source))
    skipped, header_line = _first_line(lines)
    if separator is None and (said := SAID.match(header_line)):
        separator = said[1]
        more, header_line = _first_line(lines)
        skipped += more + 1
    if header_line.lstrip().startswith(JSON_BEGINS):
        raise DatasetError(f"{source}: begins as JSON does, not as CSV; give --format jsonl")
    first_lines = _whole_header(header_line, lines)
    if separator is None:
        separator = _separator_of("".join(first_lines), source)
    reader = csv.reader(chain(first_lines, lines), strict=True, delimiter=separator)
    begins = skipped + 1
    try:
        header = _names(next(reader, []), f"{source}, line {begins}")
        begins = skipped + reader.line_num + 1
        for cells in reader:
            place, begins = f"line {begins}", skipped + reader.line_num + 1
            if not cells:
                continue
            yield place, dict(zip(header, _fitting(cells, header, f"{source}, {place}"), strict=True))
    except csv.Error as error:
        raise DatasetError(f"{source}, line {begins}: is not CSV ({error})") from None


def _split_at_cr(lines: Iterable[str]) -> Iterator[str]:
    """The lines, those too that end in CR alone; inside of quotes csv puts them together again."""
    for line in lines:
        if "\r" in line.rstrip("\r\n"):
            yield from AFTER_LONE_CR.split(line)
        else:
            yield line


def _first_line(lines: Iterator[str]) -> tuple[int, str]:
    """The number of blank lines, and the line after them; "" at the end."""
    blank = 0
    for line in lines:
        if line.strip("\r\n"):
            return blank, line
        blank += 1
    return blank, ""


def _whole_header(first: str, lines: Iterator[str]) -> list[str]:
    """The lines of a header, whose names may go on over lines inside of quotes."""
    header, quotes, size = [first], first.count('"'), len(first)
    while quotes % 2 and size < BUFFER_BYTES and (line := next(lines, "")):
        header.append(line)
        quotes, size = quotes + line.count('"'), size + len(line)
    return header


def _separator_of(header: str, source: str) -> str:
    bare = QUOTED.sub("", header)
    found = [] if "," in bare else [separator for separator in SEPARATORS if separator in bare]
    if len(found) > 1:
        names = " and ".join(SEPARATORS[separator] for separator in found)
        raise DatasetError(f"{source}: its header has {names} and no comma; separate the columns by commas")
    return found[0] if found else ","


def _names(cells: list[str], place: str) -> list[str]:
    """The names of the columns; spreadsheets leave empty ones at the end."""
    header = _without_empty_end(cells, 0)
    if cells and not header:
        raise DatasetError(f"{place}: no column has a name")
    for name in header:
        if header.count(name) > 1:
            raise DatasetError(f"{place}: two columns are named {name!r}")
    return header


def _fitting(cells: list[str], header: list[str], place: str) -> list[str]:
    cells = _without_empty_end(cells, len(header))
    if len(cells) != len(header):
        difference = "more" if len(cells) > len(header) else "fewer"
        hint = "; a cell that holds the separator stands in quotes" if len(cells) > len(header) else ""
        raise DatasetError(f"{place}: has {difference} fields than the header ({len(cells)}, not {len(header)}){hint}")
    return cells


def _without_empty_end(cells: list[str], least: int) -> list[str]:
    end = len(cells)
    while end > least and not cells[end - 1]:
        end -= 1
    return cells[:end]
