"""Rows of JSON files: an object per line, one array of objects, or objects that go on over lines."""

import json
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, NoReturn, TypeAlias

from db.datasets.streams import LONGEST_LINE_BYTES, text_pieces, whole_lines
from db.datasets.values import json_row
from db.errors import DatasetError

PlacedRow: TypeAlias = tuple[str, dict[str, Any]]
"""Where a row stands in its source ("line 7"), and the row."""

SPACE = re.compile(r"[ \t\r\n]*")
FIRST_PIECE = 1 << 16
"""Characters that are added to a value that goes on; twice as many each time, so that none is read over and over."""
TAIL = 16
"""A value that is cut short fails within its last characters, unless it ends inside of text."""


def read_json(source: str) -> Iterator[PlacedRow]:
    """The objects of a JSON file: one per line (blank lines are skipped), in one array, or one after the other.

    NaN and infinities, which Python and pandas write, are null.

    Raises:
        DatasetError: something is not JSON, is no object, or has a name twice; the message names the line.
    """
    pieces = text_pieces(source)
    number, first = 1, ""
    for piece in pieces:
        if first := piece if piece.strip() else "":
            break
        number += piece.endswith("\n")
    pieces = chain([first], pieces)
    if first.lstrip().startswith("["):
        yield from _objects(source, _Values(source, pieces, number))
        return
    lines = whole_lines(source, pieces)
    line = next(lines)
    if _is_object(line):
        yield from _object_per_line(source, chain([line], lines), number)
    else:
        yield from _objects(source, _Values(source, chain([line], lines), number))


def _is_object(line: str) -> bool:
    try:
        return isinstance(DECODER.decode(line), dict)
    except (ValueError, RecursionError):
        return False


def _object_per_line(source: str, lines: Iterable[str], first: int) -> Iterator[PlacedRow]:
    for number, line in enumerate(lines, first):
        if not line.strip():
            continue
        place = f"line {number}"
        try:
            row = DECODER.decode(line)
        except (ValueError, RecursionError) as error:
            _refuse(source, number, error)
        yield place, _checked(source, place, row, "NaN" in line or "Infinity" in line)


def _objects(source: str, values: "_Values") -> Iterator[PlacedRow]:
    for number, value in values.all():
        place = f"line {number}"
        yield place, _checked(source, place, value, may_have_nan=True)


def _checked(source: str, place: str, value: Any, may_have_nan: bool) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DatasetError(f"{source}, {place}: is not a JSON object")
    try:
        return json_row(value) if may_have_nan else value
    except RecursionError:
        raise DatasetError(f"{source}, {place}: is nested too deeply") from None


def _refuse(source: str, line: int, error: Exception) -> NoReturn:
    reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
    raise DatasetError(
        f"{source}, line {line}: is not JSON ({reason}); a JSON file has an object per line, or one array of objects"
    ) from None


class _Values:
    """JSON values one after the other, those of arrays one by one, out of pieces of text."""

    def __init__(self, source: str, pieces: Iterable[str], line: int) -> None:
        self._source = source
        self._pieces = iter(pieces)
        self._text, self._at = "", 0
        self._line = line
        """That `_at` is in."""

    def all(self) -> Iterator[tuple[int, Any]]:
        """Each value and the line where it begins.

        Raises:
            DatasetError: something is not JSON.
        """
        while letter := self._next_letter():
            if letter == "[":
                yield from self._items()
            else:
                yield self._line, self._value()

    def _items(self) -> Iterator[tuple[int, Any]]:
        self._go_to(self._at + 1)
        if self._next_letter() == "]":
            self._go_to(self._at + 1)
            return
        while True:
            self._next_letter()
            yield self._line, self._value()
            letter = self._next_letter()
            if letter not in (",", "]"):
                _refuse(self._source, self._line, ValueError("Expecting ',' or ']' after an item of the list"))
            self._go_to(self._at + 1)
            if letter == "]":
                return

    def _next_letter(self) -> str:
        """The next character that is no space, to which it goes; none at the end."""
        while True:
            self._go_to(self._end_of_space())
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read(1):
                return ""

    def _end_of_space(self) -> int:
        found = SPACE.match(self._text, self._at)
        return self._at if found is None else found.end()

    def _value(self) -> Any:
        more = FIRST_PIECE
        while True:
            try:
                value, end = DECODER.raw_decode(self._text, self._at)
            except (ValueError, RecursionError) as error:
                if not (self._is_cut(error) and self._read(more)):
                    self._refuse_value(error)
                more *= 2
                continue
            self._go_to(end)
            return value

    def _is_cut(self, error: Exception) -> bool:
        if not isinstance(error, json.JSONDecodeError):
            return False
        if len(self._text) - self._at > LONGEST_LINE_BYTES:
            limit = LONGEST_LINE_BYTES >> 20
            raise DatasetError(f"{self._source}, line {self._line}: begins a value longer than {limit} MiB") from None
        return error.msg.startswith("Unterminated string") or len(self._text) - error.pos <= TAIL

    def _refuse_value(self, error: Exception) -> NoReturn:
        end = error.pos if isinstance(error, json.JSONDecodeError) else self._at
        _refuse(self._source, self._line + self._text.count("\n", self._at, end), error)

    def _go_to(self, at: int) -> None:
        self._line += self._text.count("\n", self._at, at)
        self._at = at

    def _read(self, characters: int) -> bool:
        """Add this many characters or more, and drop those before `_at`; False at the end."""
        added: list[str] = []
        while characters > 0 and (piece := next(self._pieces, "")):
            added.append(piece)
            characters -= len(piece)
        self._text, self._at = self._text[self._at :] + "".join(added), 0
        return bool(added)


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{text} is too large for a number")
    return number


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has two fields named {twice!r}")
    return found


DECODER = json.JSONDecoder(parse_float=_finite, object_pairs_hook=_unique)
"""One for all lines: json.loads with options would make one for each."""
