"""The columns of a dataset that results pass on: their names and Arrow types, learned from the rows."""

import json
from collections.abc import Iterable
from itertools import islice
from typing import Any

import pyarrow as pa

BATCH_ROWS = 1000


class PassedColumns:
    """Names in the order of their first appearance; a column whose values fit no one type comes out as JSON text."""

    def __init__(self) -> None:
        self._types: dict[str, pa.DataType | None] = {}
        """None: JSON text."""

    @property
    def names(self) -> list[str]:
        """The columns."""
        return list(self._types)

    def learn(self, rows: Iterable[dict[str, Any]]) -> None:
        """Take more rows into account."""
        iterator = iter(rows)
        while batch := list(islice(iterator, BATCH_ROWS)):
            for name in dict.fromkeys(name for row in batch for name in row):
                found = _type_of([row.get(name) for row in batch])
                self._types[name] = _common(self._types[name], found) if name in self._types else found

    def field(self, name: str) -> tuple[str, pa.DataType]:
        """A column's name and type."""
        kind = self._types.get(name)
        return name, pa.string() if kind is None or pa.types.is_null(kind) else kind

    def arrays(self, rows: list[dict[str, Any]]) -> dict[str, pa.Array]:
        """The columns of rows that were learned from."""
        return {name: self._array(name, [row.get(name) for row in rows]) for name in self._types}

    def _array(self, name: str, values: list[Any]) -> pa.Array:
        if self._types[name] is None:
            values = [None if value is None else _text(value) for value in values]
        return pa.array(values, self.field(name)[1])


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.encode(errors="replace").decode()  # half of a surrogate pair is no text


def _type_of(values: list[Any]) -> pa.DataType | None:
    try:
        kind = pa.array(values).type
    except (pa.ArrowException, OverflowError, TypeError, UnicodeEncodeError):
        return None
    return kind if _is_writable(kind) else None


def _common(one: pa.DataType | None, other: pa.DataType | None) -> pa.DataType | None:
    if one is None or other is None or one == other:
        return None if one is None or other is None else one
    try:
        schemas = [pa.schema([("column", kind)]) for kind in (one, other)]
        return pa.unify_schemas(schemas, promote_options="permissive").field("column").type
    except pa.ArrowException:
        return None


def _is_writable(kind: pa.DataType) -> bool:
    """False for what Parquet cannot hold: objects without fields."""
    if pa.types.is_struct(kind):
        return kind.num_fields > 0 and all(_is_writable(kind.field(i).type) for i in range(kind.num_fields))
    return _is_writable(kind.value_type) if pa.types.is_list(kind) else True
