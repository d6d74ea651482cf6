"""Prompts made of other columns: `Continue this review: {text}`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from string import Formatter
from typing import Any

from db.errors import DatasetError


@dataclass(frozen=True)
class Template:
    """Text with columns in braces; `{{` and `}}` are braces."""

    parts: tuple[tuple[str, str | None], ...]
    """Literal text and the column after it."""

    @classmethod
    def parse(cls, text: str) -> "Template":
        """Read a template.

        Raises:
            DatasetError: its braces do not match, or it names no column.
        """
        try:
            parsed = list(Formatter().parse(text))
        except ValueError as error:
            raise DatasetError(f"--template: {error}; a brace that is text is written twice") from None
        for _, name, spec, conversion in parsed:
            if name is not None and (not name or spec or conversion):
                raise DatasetError("--template: between braces stands the name of a column and nothing else: {text}")
        template = cls(tuple((literal, name) for literal, name, _, _ in parsed))
        if not template.columns:
            raise DatasetError("--template: names no column; write one in braces: {text}")
        return template

    @property
    def columns(self) -> list[str]:
        """The columns that it uses, each once."""
        return list(dict.fromkeys(name for _, name in self.parts if name is not None))

    def render(self, row: Mapping[str, Any]) -> str | None:
        """The prompt for a row; None where the row lacks one of the columns."""
        if any(row.get(name) is None for name in self.columns):
            return None
        return "".join(literal + ("" if name is None else _text(row[name])) for literal, name in self.parts)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
