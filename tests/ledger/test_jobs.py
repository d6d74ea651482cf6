"""Jobs from submit to delete, on both databases."""

import resource

import pytest
import sqlalchemy as sa

from db import jobs, results, session, shards, tables
from db.clock import from_now
from db.errors import AmbiguousJobError, DatasetError, JobActiveError, JobNotFoundError
from db.session import writing
from db.tables import jobs as jobs_table
from db.tables import requests
from db.tables import shards as shards_table


def test_a_job_without_rows_is_refused_and_leaves_nothing(ledger, submit):
    with pytest.raises(DatasetError, match="no rows"):
        submit(rows=0)
    assert jobs.list_jobs(ledger) == []


def test_an_error_in_the_middle_of_the_rows_leaves_nothing(ledger):
    def rows():
        for index in range(2500):
            yield jobs.NewRow(None, {"prompt": str(index)})
        raise DatasetError("line 2501: no JSON")

    with pytest.raises(DatasetError, match="line 2501"):
        jobs.submit(ledger, jobs.NewJob(spec={}, samples=1), rows())
    assert jobs.list_jobs(ledger) == []


def test_slow_rows_keep_no_other_writer_waiting(ledger, ledger_url, submit, monkeypatch):
    monkeypatch.setattr(session, "BUSY_SECONDS", 0)
    other, another_job, counts = session.connect(ledger_url), submit(), []

    def rows():
        for index in range(2500):
            if index % 100 == 0:
                with session.writing(other) as connection:
                    connection.execute(sa.update(tables.jobs).values(priority=index % 10))
            yield jobs.NewRow(f"{index}\n\u2028\ufffd", {"prompt": "naïve \ud800\u2028", "number": 10**30 + index})

    job = jobs.submit(ledger, jobs.NewJob(spec={}, samples=1, key="k"), rows(), counts.append, is_slow=True)
    assert job.total_rows == 2500
    assert counts[:2] == [1000, 2000]
    with ledger.connect() as connection:
        stored = connection.execute(sa.select(requests).where(requests.c.job_id == job.id, requests.c.row_index == 7))
        row = stored.one()
    assert row.custom_id == "7\n\u2028\ufffd"
    assert row.row == {"prompt": "naïve \ufffd\u2028", "number": 10**30 + 7}
    assert jobs.submit(ledger, jobs.NewJob(spec={}, samples=1, key="k"), rows()).id == job.id
    assert another_job.id != job.id
    other.dispose()


def test_an_error_in_the_middle_of_slow_rows_leaves_nothing(ledger, tmp_path):
    def rows():
        yield jobs.NewRow(None, {"prompt": "a"})
        raise DatasetError("line 2: no JSON")

    before = set(tmp_path.iterdir())
    with pytest.raises(DatasetError, match="line 2"):
        jobs.submit(ledger, jobs.NewJob(spec={}, samples=1), rows(), is_slow=True)
    assert jobs.list_jobs(ledger) == []
    assert {path for path in tmp_path.iterdir() if ".db-" not in path.name} <= before


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_slow_rows_for_which_there_is_no_room_are_refused(ledger):
    rows = (jobs.NewRow(None, {"prompt": "x" * 1000}) for _ in range(5000))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        with pytest.raises(DatasetError, match=r"the rows cannot be kept in /.* \(File too large\)"):
            jobs.submit(ledger, jobs.NewJob(spec={}, samples=1), rows, is_slow=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert jobs.list_jobs(ledger) == []


def test_ids_may_be_shortened_while_they_are_unique(ledger, submit):
    first, second = submit(), submit()
    assert jobs.find(ledger, first.id) == first
    assert jobs.find(ledger, second.id.removeprefix("job-")).id == second.id
    with pytest.raises(AmbiguousJobError, match=first.id):
        jobs.find(ledger, "job-")
    for wrong in ("job-zzz", "", "%", first.id + "0"):
        with pytest.raises((JobNotFoundError, AmbiguousJobError)):
            jobs.find(ledger, wrong)


def test_jobs_are_listed_newest_first(ledger, submit):
    ids = [submit().id for _ in range(3)]
    assert {progress.job.id for progress in jobs.list_jobs(ledger)} == set(ids)
    assert len(jobs.list_jobs(ledger, limit=2)) == 2


def test_cancel_ends_what_nobody_has_and_waits_for_the_rest(ledger, submit, publish, finish):
    job = submit(rows=6, shard_rows=2)
    lease = shards.claim(ledger, publish()[0], "worker", 60)
    assert jobs.cancel(ledger, job.id).status == "cancelling"
    assert shards.heartbeat(ledger, [lease], 60).cancelled == {lease}
    assert publish() == []
    shards.release(ledger, lease)
    assert jobs.find(ledger, job.id).status == "cancelled"
    assert jobs.cancel(ledger, job.id).status == "cancelled"


def test_a_job_that_nobody_began_is_cancelled_at_once(ledger, submit):
    job = submit()
    assert jobs.cancel(ledger, job.id).status == "cancelled"


def test_retry_does_failed_and_cancelled_rows_again(ledger, submit, publish, finish, run_all):
    job = submit(rows=6, shard_rows=2)
    lease = shards.claim(ledger, publish()[0], "worker", 60)
    with pytest.raises(JobActiveError, match="not ended"):
        jobs.retry_failed(ledger, job.id)
    finish(lease, failing={1})
    shards.complete(ledger, [lease])
    jobs.cancel(ledger, job.id)
    assert jobs.retry_failed(ledger, job.id) == 5
    run_all()
    progress = jobs.progress(ledger, job.id)
    assert (progress.job.status, progress.completed_rows, progress.failed_rows) == ("completed", 6, 0)
    assert jobs.retry_failed(ledger, job.id) == 0
    assert jobs.find(ledger, job.id).status == "completed"


def test_the_speed_of_a_retry_is_that_of_the_rows_it_does(ledger, submit, publish, finish, run_all):
    job = submit(rows=100, shard_rows=1)
    run_all(failing=range(90, 100))
    jobs.retry_failed(ledger, job.id)
    first, *_ = publish()
    lease = shards.claim(ledger, first, "worker", 60)
    with writing(ledger) as connection:
        started = sa.update(jobs_table).where(jobs_table.c.id == job.id)
        connection.execute(started.values(started_at=from_now(-10)))
    assert jobs.progress(ledger, job.id).eta_seconds is None
    finish(lease, tokens=range(20))
    progress = jobs.progress(ledger, job.id)
    assert (progress.completed_rows, progress.pending_rows, progress.generated_tokens) == (91, 9, 200)
    assert progress.rows_per_second == pytest.approx(0.1, rel=0.2)
    assert progress.tokens_per_second == pytest.approx(2, rel=0.2)
    assert progress.eta_seconds == pytest.approx(90, rel=0.2)


def test_a_job_that_cannot_run_fails_all_its_pending_rows(ledger, submit, publish, finish):
    job = submit(rows=4, shard_rows=2)
    first, second = (shards.claim(ledger, shard_id, "worker", 60) for shard_id in publish())
    finish(first)
    jobs.fail_job(ledger, job.id, "model_not_found", "no model 'b'")
    assert shards.heartbeat(ledger, [second], 60).lost == {second}
    progress = jobs.progress(ledger, job.id)
    assert (progress.job.status, progress.completed_rows, progress.failed_rows) == ("failed", 2, 2)
    assert progress.job.error_code == "model_not_found"
    errors = [row["error"] and row["error"]["code"] for row in results.export_rows(ledger, job.id)]
    assert errors == [None, None, "model_not_found", "model_not_found"]


def test_delete_removes_everything_of_an_ended_job(ledger, submit, run_all):
    job, other = submit(samples=2), submit()
    with pytest.raises(JobActiveError, match="cancel"):
        jobs.delete(ledger, job.id)
    run_all(samples=2)
    jobs.delete(ledger, job.id)
    with pytest.raises(JobNotFoundError):
        jobs.find(ledger, job.id)
    assert list(results.export_rows(ledger, job.id)) == []
    assert len(list(results.export_rows(ledger, other.id))) == 12


def test_rows_come_out_in_order_with_the_columns_of_the_input(ledger, submit, run_all):
    job = submit(rows=3, samples=2, columns={"label": {"a": [1]}, "completion": "of the input", "naïve": "漢字"})
    run_all(failing={1}, samples=2)
    rows = list(results.export_rows(ledger, job.id))
    assert [(row["id"], row["sample"]) for row in rows] == [("id0", 0), ("id0", 1), ("id1", 0), ("id2", 0), ("id2", 1)]
    first, failed = rows[0], rows[2]
    assert (first["completion"], first["input_completion"], first["label"]) == ("text 0", "of the input", {"a": [1]})
    assert (first["rewards"], first["token_rewards"]) == ({"arm": -0.5}, {"arm": [-0.25, -0.25]})
    assert (first["tokens"], first["prompt_tokens"], first["error"], first["naïve"]) == ([5, 6], 3, None, "漢字")
    assert failed["error"] == {"code": "prompt_too_long", "message": "too long"}
    assert "completion" not in failed


def test_ids_and_rows_of_any_text_come_out_as_they_went_in(ledger):
    texts = ["tab\there", "line\nfeed", "\r", "back\\slash", "\\N", "\\.", 'quote"', "漢字\u2028", ""]
    new = [jobs.NewRow(text, {"id": text, "prompt": text}) for text in texts] + [jobs.NewRow(None, {"prompt": "no id"})]
    job = jobs.submit(ledger, jobs.NewJob(spec={}, samples=1, shard_rows=4), new)
    with ledger.connect() as connection:
        found = connection.execute(sa.select(requests.c.custom_id, requests.c.row).order_by(requests.c.row_index)).all()
        counts = connection.execute(sa.select(shards_table.c.row_count).order_by(shards_table.c.first_row)).scalars()
        assert list(counts) == [4, 4, 2]
    assert [row.custom_id for row in found] == [*texts, None]
    assert [row.row["prompt"] for row in found] == [*texts, "no id"]
    assert job.total_rows == 10
