"""Which columns of a dataset mean what."""

import json
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from typing import Any

from db.datasets.batch_requests import asked_for, from_batch_request, is_batch_request
from db.datasets.json_rows import PlacedRow
from db.datasets.messages import with_whole_texts
from db.datasets.seen_ids import SeenIds
from db.datasets.template import Template
from db.datasets.values import STRUCTURED
from db.errors import DatasetError
from db.storable import storable
from db.submission import NewRow

LOOK_AHEAD_ROWS = 100
ROLES = ("prompt", "messages", "id", "response")
IN_THE_WAY = {"prompt": ("prompt", "messages"), "messages": ("messages", "prompt"), "id": ("id", "custom_id")}
"""Columns that would mean the same as one that was chosen."""
KNOWN = (*ROLES, "custom_id", "weights", "sampling", "tools", "documents", "chat_template_kwargs")
"""Columns that mean something where nothing else is said."""


@dataclass(frozen=True)
class Columns:
    """Names of the columns in the dataset; from then on they are called prompt, messages, id and response.

    A column that is named must be there; where none is, the one called so is taken if there is one.

    Raises:
        DatasetError: there is a template and a column that would make the prompt too.
    """

    prompt: str | None = None
    messages: str | None = None
    id: str | None = None
    response: str | None = None
    template: Template | None = None
    """Makes the prompt, instead of a column."""
    needs_response: bool = False
    """The rows are to be scored."""

    def __post_init__(self) -> None:
        if self.template is not None and (self.prompt is not None or self.messages is not None):
            raise DatasetError("--template makes the prompts: leave out --prompt-column and --messages-column")

    @cached_property
    def named(self) -> dict[str, str]:
        """The columns that were named, by what they are."""
        names = {role: getattr(self, role) for role in ROLES}
        return {role: name for role, name in names.items() if name is not None}

    @cached_property
    def _in_the_way(self) -> set[str]:
        chosen = [*self.named, *(["prompt"] if self.template is not None else [])]
        return {name for role in chosen for name in IN_THE_WAY.get(role, (role,))}

    def row(self, source: dict[str, Any]) -> dict[str, Any]:
        """A row of the dataset with our names.

        A column that would stand beside the one chosen in its place is set aside.
        """
        row = {role: source[name] for role, name in self.named.items() if name in source}
        others = {name: value for name, value in source.items() if name not in self.named.values()}
        for name, value in others.items():
            row[set_aside(name, self._in_the_way, others)] = value
        if self.template is not None:
            row["prompt"] = self.template.render(source)
        for name in STRUCTURED:
            if name in row:
                row[name] = _structured(row[name])
        if "messages" in row:
            row["messages"] = with_whole_texts(row["messages"])
        if isinstance(row.get("sampling"), dict):
            row["sampling"] = asked_for(row["sampling"])
        return row

    def require(self, beginning: Iterable[dict[str, Any]]) -> None:
        """Make sure that a dataset has what it needs.

        Args:
            beginning: its first rows, as they stand there.

        Raises:
            DatasetError: none of them has a column that was named, or one to prompt with, or a response to score; or
                a column has the name of a known one with space around it.
        """
        rows = list(beginning)
        there = dict.fromkeys(name for row in rows for name in row)
        columns = f"(its columns: {', '.join(map(_shown, there)) or 'none'})"
        for role, name in self.named.items():
            if name not in there:
                raise DatasetError(f"has no column {name!r} {columns}; give --{role}-column one of them")
        self._require_names_as_they_are(there)
        renamed = [self.row(row) for row in rows]
        if not any(row.get("prompt") is not None or row.get("messages") is not None for row in renamed):
            raise DatasetError(
                f"has no {self._wanted} {columns}; "
                "name one with --prompt-column or --messages-column, or make prompts with --template"
                + _hint_of_a_list_inside(rows)
            )
        if not any(isinstance(row.get("prompt"), str) or isinstance(row.get("messages"), list) for row in renamed):
            raise DatasetError(
                f"has no {self._wanted} whose values are text, or lists of messages (in CSV as JSON, as json.dumps "
                f"writes it) {columns}; name another with --prompt-column or --messages-column"
            )
        if self.needs_response and not any(row.get("response") is not None for row in renamed):
            raise DatasetError(
                f"has no {_value_of(self.response, 'response')} {columns}; name one with --response-column"
            )

    def _require_names_as_they_are(self, there: Iterable[str]) -> None:
        for name in there:
            known = name.strip()
            if name != known and known in KNOWN and known not in self._in_the_way:
                raise DatasetError(
                    f"has a column {name!r}, which would be called {known!r} without the space around its name; "
                    "take the space out"
                )

    @property
    def _wanted(self) -> str:
        """What makes a prompt, for a message."""
        if self.template is not None:
            return f"row with all of the template's columns {', '.join(map(repr, self.template.columns))}"
        return _value_of(self.prompt or self.messages, "prompt", "messages")


def _hint_of_a_list_inside(rows: list[dict[str, Any]]) -> str:
    """For a file that is one object with its rows in a field."""
    if len(rows) > 1:
        return ""
    inside = [
        name for name, value in rows[0].items() if isinstance(value, list) and value and isinstance(value[0], dict)
    ]
    return f"; if its rows are in {inside[0]!r}, give that list as a file of its own" if inside else ""


def _shown(column: str) -> str:
    return column if column.strip() == column != "" else repr(column)


def _value_of(named: str | None, *defaults: str) -> str:
    return f"column {' or '.join(map(repr, defaults))}" if named is None else f"value in column {named!r}"


def set_aside(name: str, taken: Container[str], others: Container[str]) -> str:
    """The name under which a column of a row is kept: its own, or where that is taken, `input_NAME`.

    Where one of the row's other columns has that name, `input_` comes before it once more.
    """
    free = name
    while free in taken or (free != name and free in others):
        free = f"input_{free}"
    return free


def new_rows(
    rows: Iterable[PlacedRow], columns: Columns, source: str, samples: int = 1, has_unique_ids: bool = False
) -> Iterator[NewRow]:
    """Rows to store.

    A row without a prompt passes: it becomes a failed row of the job.

    Args:
        has_unique_ids: an id must not be there twice; that of a batch request never may.

    Raises:
        DatasetError: there are no rows, or the first hundred lack a column that is needed.
    """
    placed = _unpacked(rows, source, samples)
    beginning = list(islice(placed, LOOK_AHEAD_ROWS))
    if not beginning:
        raise DatasetError(f"{source}: has no rows")
    try:
        columns.require(row for _, row in beginning)
    except DatasetError as error:
        raise DatasetError(f"{source}: {error}") from None
    found = (_new_row(row, columns, f"{source}, {place}") for place, row in chain(beginning, placed))
    return _unique(found) if has_unique_ids else found


def _new_row(row: dict[str, Any], columns: Columns, place: str) -> NewRow:
    try:
        renamed = columns.row(row)
        return NewRow(_custom_id(renamed), renamed, place)
    except RecursionError:
        raise DatasetError(f"{place}: is nested too deeply") from None


def _unpacked(rows: Iterable[PlacedRow], source: str, samples: int) -> Iterator[PlacedRow]:
    """The rows, OpenAI batch requests as rows of ours."""
    seen = SeenIds()
    for place, row in rows:
        if not is_batch_request(row):
            yield place, row
            continue
        try:
            request = from_batch_request(row, samples)
            if row["custom_id"] is not None:
                seen.add("custom_id", _as_text(row["custom_id"]), place)
        except DatasetError as error:
            raise DatasetError(f"{source}, {place}: {error}") from None
        yield place, request


def _unique(rows: Iterable[NewRow]) -> Iterator[NewRow]:
    seen = SeenIds()
    for row in rows:
        try:
            if row.custom_id is not None:
                seen.add("id", row.custom_id, row.place)
        except DatasetError as error:
            raise DatasetError(f"{row.place}: {error}") from None
        yield row


def _structured(value: Any) -> Any:
    """The value of a structured column: text is read as JSON; fields that are null are left out, as if absent.

    Text that is no JSON stays, and fails its row later. Columns of tables have every field in every row.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except ValueError:
            return value
    if isinstance(value, dict):
        return {name: item for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_structured(item) if isinstance(item, dict) else item for item in value]
    return value


def _custom_id(row: dict[str, Any]) -> str | None:
    value = row["id"] if row.get("id") is not None else row.get("custom_id")
    if value is None:
        return None
    return storable(_as_text(value))


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
