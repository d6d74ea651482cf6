"""A step's outcome as a file named after what it depends on: a run that was killed goes on where it stopped."""

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Cache:
    """Outcomes of steps under one folder.

    Args:
        folder: made where it is missing.
        note: called with one line before a step that has to be run.
    """

    def __init__(self, folder: Path, note: Callable[[str], None] = lambda line: None) -> None:
        self.folder = folder
        self.note = note
        folder.mkdir(parents=True, exist_ok=True)

    def rows(self, name: str, settings: Any, make: Callable[[], Iterable[Row]]) -> list[Row]:
        """The rows of a step, from its file where there is one; the file appears whole or not at all.

        Args:
            name: of the step, for people.
            settings: everything that the rows depend on, as JSON can write it.
            make: runs the step.
        """
        path = self._path(name, settings, ".jsonl")
        if not path.exists():
            self.note(name)
            part = path.with_name(path.name + ".part")
            part.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in make()), encoding="utf-8")
            part.replace(path)
        with path.open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    def made(self, name: str, settings: Any, make: Callable[[Path], None]) -> Path:
        """The folder of a step, made once. `make` is given a folder that it may find half full, and then goes on."""
        path = self._path(name, settings)
        if not path.exists():
            self.note(name)
            part = path.with_name(path.name + ".part")
            part.mkdir(exist_ok=True)
            make(part)
            part.replace(path)
        return path

    def _path(self, name: str, settings: Any, suffix: str = "") -> Path:
        return self.folder / f"{name}-{digest(settings)}{suffix}"


def digest(settings: Any) -> str:
    """Twelve hexadecimal digits that say what settings a step had."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def digest_of(*paths: Path) -> str:
    """The same for the contents of files."""
    total = hashlib.sha256()
    for path in paths:
        total.update(path.read_bytes())
    return total.hexdigest()[:12]
