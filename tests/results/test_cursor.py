"""The read API that polls."""

import sys

import pytest

from db import jobs
from db.errors import DatasetError, JobNotFoundError
from db.results import Cursor, Failure, export_rows, failures


def test_a_cursor_gives_each_row_once_as_they_come(ledger, submit, fill):
    job = submit([f"p{i}" for i in range(40)], samples=2, shard_rows=8)
    cursor = Cursor(ledger, job.id)
    assert cursor.rows() == []
    assert not cursor.is_finished
    fill(job, shards_at_most=2, failing={3})
    seen = cursor.rows(limit=10)
    assert (cursor.position, len(seen)) == (10, 19)
    seen += cursor.rows()
    assert (cursor.position, cursor.rows(), cursor.is_finished) == (16, [], False)
    fill(job)
    later = Cursor(ledger, job.id, cursor.position)
    while not later.is_finished:
        seen += later.rows(limit=7)
    assert seen == list(export_rows(ledger, job.id))


def test_a_cursor_gives_tables_of_one_schema_and_frames(ledger, submit, fill):
    job = submit([{"prompt": f"p{i}", "late": None if i < 10 else i} for i in range(20)], shard_rows=8)
    cursor = Cursor(ledger, job.id)
    empty = cursor.table()
    fill(job)
    first, second = cursor.table(limit=5), cursor.table(limit=20)
    assert empty.schema == first.schema == second.schema
    assert (empty.num_rows, first.num_rows, second.num_rows) == (0, 10, 30)
    frame = Cursor(ledger, job.id).frame()
    assert list(frame["late"].dropna().unique()) == list(range(10, 20))
    assert frame["logprobs"][0].dtype == "float32"


def test_frames_say_that_they_need_pandas_before_rows_are_read(ledger, finished, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    cursor = Cursor(ledger, finished(["a"]).id)
    with pytest.raises(DatasetError, match="pip install pandas"):
        cursor.frame()
    assert cursor.position == 0
    assert cursor.table().num_rows == 2


def test_rows_that_never_came_do_not_hold_up_a_cancelled_job(ledger, submit, fill):
    job = submit([f"p{i}" for i in range(24)], samples=1, shard_rows=8)
    fill(job, shards_at_most=1)
    jobs.cancel(ledger, job.id)
    cursor = Cursor(ledger, job.id)
    assert len(cursor.rows()) == 8
    assert cursor.is_finished


def test_a_job_that_is_not_there(ledger):
    with pytest.raises(JobNotFoundError):
        Cursor(ledger, "job-none").rows()


def test_failures_are_counted_by_code_over_the_whole_job(ledger, submit, fill):
    job = submit([f"p{i}" for i in range(40)], samples=2, shard_rows=8)
    fill(job, shards_at_most=3, failing={1, 20})
    jobs.fail_job(ledger, job.id, "model_not_found", "there is no model b")
    submit(["another"])
    assert failures(ledger, job.id) == [
        Failure("model_not_found", 16, "there is no model b"),
        Failure("prompt_too_long", 2, "the prompt has 9 tokens, the context 8"),
    ]
