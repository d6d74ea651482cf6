"""Preference pairs: a prompt, the response that was preferred, and the one that was not; read and checked."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from models.errors import ModelsError

FIELDS = ("prompt", "chosen", "rejected")


class PreferencesError(ModelsError):
    """A file of preference pairs cannot be read, or no pair of it can be used."""


class Problem(StrEnum):
    """Why a pair is left out of training."""

    MALFORMED = "malformed"
    """No JSON object, or a field is missing or not text."""
    EMPTY = "empty"
    """The prompt or a response has no text."""
    IDENTICAL = "identical"
    """Both responses are the same, so that there is nothing to prefer."""
    PROMPT_TOO_LONG = "prompt too long"
    TOO_LONG = "too long"
    """Prompt and response together have more tokens than allowed."""


@dataclass(frozen=True)
class Preference:
    """One pair of responses to a prompt, as text."""

    line: int
    """Where it stands in its file, from 1."""
    prompt: str
    chosen: str
    rejected: str


@dataclass(frozen=True)
class BadPair:
    """A pair that is left out, and why."""

    line: int
    problem: Problem
    detail: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.problem}: {self.detail}"


@dataclass(frozen=True)
class Preferences:
    """The pairs of one file: those that can be used and those that cannot."""

    pairs: Sequence[Preference]
    bad: Sequence[BadPair]


def read_preferences(path: Path) -> Preferences:
    """Read pairs from JSONL with the text fields `prompt`, `chosen` and `rejected`; other fields are ignored.

    Raises:
        PreferencesError: the file cannot be read, or a line is not JSON (it is named).
    """
    pairs: list[Preference] = []
    bad: list[BadPair] = []
    for line, row in _json_lines(path):
        checked = parse_preference(line, row)
        if isinstance(checked, Preference):
            pairs.append(checked)
        else:
            bad.append(checked)
    return Preferences(pairs, bad)


def parse_preference(line: int, row: Any) -> Preference | BadPair:
    """Check one row: an object whose three fields are text, none empty, the responses not the same."""
    if not isinstance(row, Mapping):
        return BadPair(line, Problem.MALFORMED, "the line is not a JSON object")
    for field in FIELDS:
        if field not in row:
            return BadPair(line, Problem.MALFORMED, f"`{field}` is missing")
        if not isinstance(row[field], str):
            return BadPair(line, Problem.MALFORMED, f"`{field}` must be text, not {type(row[field]).__name__}")
        if not row[field].strip():
            return BadPair(line, Problem.EMPTY, f"`{field}` is empty")
    if row["chosen"].strip() == row["rejected"].strip():
        return BadPair(line, Problem.IDENTICAL, "`chosen` and `rejected` are the same")
    return Preference(line, row["prompt"], row["chosen"], row["rejected"])


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        with path.open(encoding="utf-8") as lines:
            for number, text in enumerate(lines, start=1):
                if text.strip():
                    yield number, json.loads(text)
    except json.JSONDecodeError as error:
        raise PreferencesError(f"{path}, line {number}: is not JSON ({error})") from None
    except UnicodeDecodeError as error:
        raise PreferencesError(f"{path}: is not UTF-8 text ({error.reason})") from None
    except OSError as error:
        raise PreferencesError(f"{path}: cannot be read ({error.strerror})") from None
