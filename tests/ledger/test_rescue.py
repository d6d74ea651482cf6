"""Shards whose worker died come back in halves, until the culprit stands alone; on both databases."""

import pytest
import sqlalchemy as sa

from db import jobs, rescue, results, shards, tables


@pytest.fixture
def die(ledger, expire):
    """A worker dies with its shard, and the rescuer finds it."""

    def die(lease):
        expire(lease.shard_id)
        assert rescue.rescue(ledger) == 1

    return die


@pytest.fixture
def run_until_done(ledger, publish, finish, die):
    """Run all shards one after the other; a worker dies when it comes to the row `poison`. Returns the deaths."""

    def run_until_done(poison):
        deaths = []
        while due := publish():
            for shard_id in due:
                lease = shards.claim(ledger, shard_id, "worker", 60)
                rows = shards.pending_rows(ledger, lease)
                if lease.is_suspect:
                    assert shards.begin_alone(ledger, lease)
                if any(row.index == poison for row in rows):
                    deaths.append(len(rows))
                    die(lease)
                else:
                    finish(lease)
                    assert shards.complete(ledger, [lease])
        return deaths

    return run_until_done


def test_a_poison_row_fails_alone_and_the_other_31_complete(ledger, submit, run_until_done):
    job = submit(rows=32, shard_rows=32)
    assert run_until_done(poison=13) == [32, 16, 8, 4, 2, 1, 1, 1]
    progress = jobs.progress(ledger, job.id)
    assert (progress.job.status, progress.completed_rows, progress.failed_rows) == ("completed", 31, 1)
    assert (progress.pending_rows, progress.open_shards, progress.generated_tokens) == (0, 0, 62)
    errors = {row["id"]: row["error"]["code"] for row in results.export_rows(ledger, job.id) if row["error"]}
    assert errors == {"id13": "worker_died"}


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_in_a_shard_of_any_size_one_row_fails(ledger, submit, run_until_done, rows):
    for poison in range(rows):
        job = submit(rows=rows, shard_rows=rows)
        run_until_done(poison)
        progress = jobs.progress(ledger, job.id)
        assert (progress.completed_rows, progress.failed_rows) == (rows - 1, 1)


def test_rows_that_are_done_count_in_the_half_they_belong_to(ledger, submit, publish, finish, die):
    job = submit(rows=8, shard_rows=8)
    lease = shards.claim(ledger, *publish(), "worker", 60)
    rows = shards.pending_rows(ledger, lease)
    finish(lease, only=[rows[1], *rows[4:]], failing={7})
    die(lease)
    halves = [shards.claim(ledger, shard_id, "worker", 60) for shard_id in publish()]
    assert [[row.index for row in shards.pending_rows(ledger, half)] for half in halves] == [[0], [2, 3]]
    assert [half.is_suspect for half in halves] == [True, False]
    with ledger.connect() as connection:
        columns = tables.shards.c
        counts = connection.execute(sa.select(columns.completed_rows, columns.failed_rows).order_by(columns.first_row))
        assert counts.all() == [(1, 0), (3, 1)]
    progress = jobs.progress(ledger, job.id)
    assert (progress.completed_rows, progress.failed_rows, progress.generated_tokens) == (4, 1, 8)


def test_a_shard_that_only_lacked_its_end_is_done(ledger, submit, publish, finish, die):
    job = submit(rows=2)
    lease = shards.claim(ledger, *publish(), "worker", 60)
    finish(lease)
    die(lease)
    assert jobs.find(ledger, job.id).status == "completed"


def test_a_row_beside_which_workers_die_is_not_blamed(ledger, submit, publish, finish, die):
    job = submit(rows=1)
    for attempt in range(8):
        lease = shards.claim(ledger, *publish(), "worker", 60)
        assert (lease.attempt, lease.is_suspect) == (attempt, attempt > 0)
        die(lease)
    finish(lease := shards.claim(ledger, *publish(), "worker", 60))
    assert shards.complete(ledger, [lease])
    assert jobs.progress(ledger, job.id).completed_rows == 1


def test_a_suspect_that_is_handed_back_starts_anew(ledger, submit, publish, die):
    job = submit(rows=1)
    die(shards.claim(ledger, *publish(), "worker", 60))
    for _ in range(2):
        lease = shards.claim(ledger, *publish(), "worker", 60)
        assert shards.begin_alone(ledger, lease)
        assert shards.begin_alone(ledger, lease)
        die(lease)
    lease = shards.claim(ledger, *publish(), "worker", 60)
    assert lease.lone_attempts == 2
    shards.release(ledger, lease)
    assert shards.claim(ledger, *publish(), "worker", 60).lone_attempts == 0
    assert jobs.progress(ledger, job.id).failed_rows == 0


def test_a_lost_lease_cannot_begin_alone(ledger, submit, publish, die):
    submit(rows=1)
    lease = shards.claim(ledger, *publish(), "worker", 60)
    die(lease)
    assert not shards.begin_alone(ledger, lease)


def test_a_poison_row_can_be_tried_again(ledger, submit, run_until_done):
    job = submit(rows=4, shard_rows=4)
    run_until_done(poison=2)
    assert jobs.retry_failed(ledger, job.id) == 1
    run_until_done(poison=None)
    progress = jobs.progress(ledger, job.id)
    assert (progress.completed_rows, progress.failed_rows, progress.pending_rows) == (4, 0, 0)


def test_a_dead_workers_shard_of_a_cancelled_job_ends_it(ledger, submit, publish, die):
    job = submit(rows=4, shard_rows=4)
    lease = shards.claim(ledger, *publish(), "worker", 60)
    jobs.cancel(ledger, job.id)
    die(lease)
    assert jobs.find(ledger, job.id).status == "cancelled"
