"""Values of Parquet beside those of pyarrow and pandas."""

import json
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from uuid import UUID

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa

from db import jobs
from db.datasets import DatasetSource, open_dataset
from db.errors import DatasetError
from db.results import export_rows
from db.session import reading
from db.tables import requests
from tests.ledger.test_inputs import read

BIG = 2**53 + 1


def of_parquet(tmp_path, **columns):
    path = tmp_path / "rows.parquet"
    length = len(next(iter(columns.values())))
    pq.write_table(pa.table({"prompt": ["p"] * length, **columns}), path)
    return read(path)


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        (pa.decimal128(38, 0), [Decimal(1), Decimal(BIG), Decimal(10**37)], [1, BIG, 10**37]),
        (pa.decimal256(76, 0), [Decimal(10**60 + 1)], [10**60 + 1]),
        (pa.decimal128(10, 2), [Decimal("1.50"), Decimal("-0.10"), None], [1.5, -0.1, None]),
        (pa.decimal128(38, 18), [Decimal("0.5"), Decimal("0.1"), Decimal(0)], [0.5, 0.1, 0.0]),
        (pa.decimal128(20, 2), [Decimal("12345678901234567.89")], ["12345678901234567.89"]),
        (pa.decimal128(20, 2), [Decimal(f"{BIG}.00")], [f"{BIG}.00"]),
        (pa.int64(), [BIG, -(2**63)], [BIG, -(2**63)]),
        (pa.uint64(), [2**64 - 1], [2**64 - 1]),
        (pa.float16(), [1.5], [1.5]),
        (pa.null(), [None], [None]),
        (pa.large_binary(), [b"text", b"\xff"], ["text", "/w=="]),
        (pa.uuid(), [UUID(int=5).bytes], [str(UUID(int=5))]),
        (pa.map_(pa.string(), pa.float64()), [[("b", 1.0), ("a", 2.0)], [], None], [{"b": 1.0, "a": 2.0}, {}, None]),
        (pa.map_(pa.int32(), pa.string()), [[(7, "x")]], [{"7": "x"}]),
        (pa.list_(pa.struct([("d", pa.decimal128(5, 0))])), [[{"d": Decimal(7)}, None]], [[{"d": 7}, None]]),
    ],
)
def test_numbers_and_nested_values_keep_their_values(tmp_path, kind, values, expected):
    found = [row["column"] for row in of_parquet(tmp_path, column=pa.array(values, kind))]
    assert found == expected
    assert [type(value) for value in found] == [type(value) for value in expected]
    assert json.loads(json.dumps(found)) == expected


def test_an_id_that_is_a_decimal_is_the_one_that_pandas_prints(ledger, tmp_path):
    ids = [Decimal(1), Decimal(BIG), Decimal(10**30 + 7)]
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"id": pa.array(ids, pa.decimal128(38, 0)), "prompt": ["p"] * 3}), path)
    job = jobs.submit(ledger, jobs.NewJob(spec={}, samples=1), open_dataset(DatasetSource(str(path))))
    printed = [str(value) for value in pd.read_parquet(path)["id"]]
    with reading(ledger) as connection:
        stored = connection.execute(sa.select(requests.c.custom_id).order_by(requests.c.row_index)).scalars().all()
    assert stored == printed
    jobs.fail_job(ledger, job.id, "code", "message")
    assert [str(row["id"]) for row in export_rows(ledger, job.id)] == printed


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (pa.timestamp("ns", tz="Asia/Kolkata"), [1, 10**18]),
        (pa.timestamp("us"), [datetime(2026, 1, 2, 3, 4, 5, 6)]),
        (pa.date32(), [date(2026, 2, 3)]),
        (pa.time64("us"), [time(1, 2, 3, 4)]),
        (pa.duration("ns"), [1, 86_400 * 10**9 + 5]),
        (pa.duration("us"), [timedelta(days=2, hours=3, microseconds=40), timedelta(seconds=-1)]),
        (pa.duration("s"), [timedelta(0), None]),
    ],
)
def test_times_are_iso_text_as_pandas_writes_it(tmp_path, kind, values):
    column = pa.array(values, kind)
    found = [row["column"] for row in of_parquet(tmp_path, column=column)]
    assert found == [None if value is None else _iso(value, kind) for value in column.to_pylist()]


def _iso(value, kind):
    return pd.Timedelta(value).isoformat() if pa.types.is_duration(kind) else value.isoformat()


def test_durations_have_the_form_of_pandas_where_pyarrow_gives_pythons_own(tmp_path):
    for value in (timedelta(0), timedelta(days=-1, seconds=5), timedelta(minutes=61, microseconds=100)):
        (row,) = of_parquet(tmp_path, column=pa.array([value], pa.duration("us")))
        assert pd.Timedelta(row["column"]) == pd.Timedelta(value)


def test_columns_of_one_name_are_refused(tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["prompt", "prompt"]), path)
    with pytest.raises(DatasetError, match=r"rows\.parquet: .*two columns are named 'prompt'; rename one"):
        read(path)


def test_a_map_with_a_key_twice_is_refused_by_its_row(tmp_path):
    twice = pa.array([[("a", 1.0)], [("a", 1.0), ("a", 2.0)]], pa.map_(pa.string(), pa.float64()))
    with pytest.raises(DatasetError, match=r"after row 1: cannot be read as Parquet \(.*'a'"):
        of_parquet(tmp_path, weights=twice)


def test_nan_in_a_struct_of_weights_is_no_gap(tmp_path):
    weights = pa.array([{"a": float("nan"), "b": None}], pa.struct([("a", pa.float64()), ("b", pa.float64())]))
    (row,) = of_parquet(tmp_path, weights=weights, score=pa.array([float("inf")]))
    assert row == {"prompt": "p", "weights": {"a": "nan"}, "score": None}


def test_dictionaries_are_their_values(tmp_path):
    labels = pa.array(["x", "y", "x", None]).dictionary_encode()
    assert [row["label"] for row in of_parquet(tmp_path, label=labels)] == ["x", "y", "x", None]
