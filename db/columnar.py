"""Results as Arrow tables, column by column: token rewards never become Python numbers on PostgreSQL."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import sqlalchemy as sa

from db import jobs
from db.errors import DatasetError
from db.passed_columns import PassedColumns
from db.results import input_rows, passed_on, row_id
from db.session import Ledger, reading
from db.spans import Span, all_spans
from db.tables import completions, requests, token_rewards

try:
    import numpy as np
    import pyarrow as pa
except ImportError:
    raise DatasetError("Arrow tables and Parquet need pyarrow: pip install 'genarm[parquet]'") from None

HEADER_BYTES = 20
"""Of PostgreSQL's binary form of an array of one dimension; each element follows its length of 4 bytes."""
ELEMENT = np.dtype([("length", ">i4"), ("value", ">i4")])
FLOATS = pa.list_(pa.float32())


@dataclass(frozen=True)
class ArrowResults:
    """The results of one job as tables of one schema."""

    ledger: Ledger
    job_id: str
    arms: tuple[str, ...]
    passed: PassedColumns

    @classmethod
    def of(cls, ledger: Ledger, job_id: str) -> "ArrowResults":
        """Look through a job's rows once, to learn the types of the columns that are passed on.

        Raises:
            JobNotFoundError: there is no such job.
        """
        job = jobs.progress(ledger, job_id).job
        passed = PassedColumns()
        for span in all_spans(ledger, job_id):
            passed.learn(_output_columns(row, index) for index, row in input_rows(ledger, job_id, span))
        return cls(ledger, job_id, tuple(job.arms), passed)

    @cached_property
    def schema(self) -> pa.Schema:
        """Of every table: `rewards` and `token_rewards` have a field for each ARM."""
        fields = [
            self.passed.field("id"),
            ("sample", pa.int32()),
            ("completion", pa.string()),
            ("finish_reason", pa.string()),
            ("tokens", pa.list_(pa.int32())),
            ("logprobs", FLOATS),
            ("base_logprobs", FLOATS),
            ("rewards", pa.struct([(arm, pa.float64()) for arm in self.arms])),
            ("token_rewards", pa.struct([(arm, FLOATS) for arm in self.arms])),
            ("prompt_tokens", pa.int32()),
            ("error", pa.struct([("code", pa.string()), ("message", pa.string())])),
            *(self.passed.field(name) for name in self.passed.names if name != "id"),
        ]
        of_arms = {"rewards", "token_rewards"}  # Parquet has no structs without fields
        return pa.schema([field for field in fields if self.arms or field[0] not in of_arms])

    def tables(self, spans: Iterator[Span]) -> Iterator[pa.Table]:
        """A table for each span."""
        return map(self.table, spans)

    def table(self, span: Span) -> pa.Table:
        """The output rows of a span.

        Raises:
            DatabaseUnreachableError: the database does not answer.
        """
        with reading(self.ledger) as connection:
            rows = connection.execute(self._query, {"first": span.first, "last": span.last}).all()
        cells = dict(zip(self._query.selected_columns.keys(), zip(*rows, strict=True), strict=True)) if rows else {}
        columns = self._columns(cells) if rows else {}
        arrays = [columns.get(field.name, pa.nulls(0, field.type)) for field in self.schema]
        return pa.Table.from_arrays(arrays, schema=self.schema)

    def _columns(self, cells: dict[str, Any]) -> dict[str, pa.Array]:
        columns = {
            "sample": pa.array(cells["sample"], pa.int32()),
            "completion": pa.array(cells["completion"], pa.string()),
            "finish_reason": pa.array(cells["finish_reason"], pa.string()),
            "tokens": _lists(cells["tokens"], pa.int32()),
            "logprobs": _lists(cells["logprobs"], pa.float32()),
            "base_logprobs": _lists(cells["base_logprobs"], pa.float32()),
            "prompt_tokens": pa.array(cells["prompt_tokens"], pa.int32()),
            "error": self._struct(
                {name: pa.array(cells[f"error_{name}"], pa.string()) for name in ("code", "message")},
                [code is None for code in cells["error_code"]],
            ),
        }
        if self.arms:
            failed = [code is not None for code in cells["error_code"]]
            totals = {arm: pa.array(cells[f"total_{n}"], pa.float64()) for n, arm in enumerate(self.arms)}
            values = {arm: _lists(cells[f"values_{n}"], pa.float32()) for n, arm in enumerate(self.arms)}
            columns |= {"rewards": self._struct(totals, failed), "token_rewards": self._struct(values, failed)}
        sources = [
            _output_columns(row, index) for index, row in zip(cells["row_index"], _parsed(cells["source"]), strict=True)
        ]
        return columns | self.passed.arrays(sources)

    @staticmethod
    def _struct(fields: dict[str, pa.Array], is_null: list[bool]) -> pa.Array:
        return pa.StructArray.from_arrays(list(fields.values()), names=list(fields), mask=pa.array(is_null))

    @cached_property
    def _query(self) -> sa.Select[Any]:
        """A span's completions with the rewards of each ARM beside them."""
        is_postgres = self.ledger.dialect.name == "postgresql"
        rewards = [token_rewards.alias(f"rewards_{n}") for n, _ in enumerate(self.arms)]
        source: Any = requests.join(completions, completions.c.request_id == requests.c.id)
        for arm, table in zip(self.arms, rewards, strict=True):
            same = sa.and_(table.c.request_id == completions.c.request_id, table.c.sample == completions.c.sample)
            source = source.outerjoin(table, sa.and_(same, table.c.arm == arm))

        def packed(column: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
            return sa.func.array_send(column, type_=sa.LargeBinary) if is_postgres else sa.type_coerce(column, sa.Text)

        columns = [
            requests.c.row_index,
            sa.cast(requests.c.row, sa.Text).label("source"),
            *(completions.c[name] for name in ("sample", "completion", "finish_reason", "prompt_tokens")),
            *(completions.c[name] for name in ("error_code", "error_message")),
            *(packed(completions.c[name]).label(name) for name in ("tokens", "logprobs", "base_logprobs")),
        ]
        for n, table in enumerate(rewards):
            columns += [table.c.total.label(f"total_{n}"), packed(table.c.token_values).label(f"values_{n}")]
        first, last = sa.bindparam("first", type_=sa.BigInteger), sa.bindparam("last", type_=sa.BigInteger)
        of_span = sa.and_(requests.c.row_index >= first, requests.c.row_index < last)
        query = sa.select(*columns).select_from(source).where(requests.c.job_id == self.job_id, of_span)
        return query.order_by(requests.c.row_index, completions.c.sample)


def _output_columns(row: dict[str, Any], index: int) -> dict[str, Any]:
    return {"id": row_id(row, index), **passed_on(row)}


def _parsed(sources: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of the input; the samples of a row share one."""
    text, row = None, {}
    for source in sources:
        if source != text:
            text, row = source, json.loads(source)
        yield row


def _lists(cells: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Arrays as the database gives them, as one list column: PostgreSQL's binary form, or JSON text."""
    if any(isinstance(cell, str) for cell in cells):
        return pa.array([None if cell is None else json.loads(cell) for cell in cells], pa.list_(kind))
    lengths = [0 if cell is None else max(len(cell) - HEADER_BYTES, 0) // ELEMENT.itemsize for cell in cells]
    elements = np.frombuffer(b"".join(cell[HEADER_BYTES:] for cell in cells if cell is not None), ELEMENT)
    if (elements["length"] != 4).any():
        raise ValueError("an array in the database has a null element")
    values = elements["value"].astype("<i4")
    flat = pa.array(values if pa.types.is_integer(kind) else values.view("<f4"), kind)
    offsets = pa.array([0, *accumulate(lengths)], pa.int32())
    return pa.ListArray.from_arrays(offsets, flat, mask=pa.array([cell is None for cell in cells]))
