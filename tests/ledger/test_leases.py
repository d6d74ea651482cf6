"""The lease protocol, on both databases."""

import threading

import sqlalchemy as sa

from db import jobs, rescue, shards
from db.tables import ShardState
from db.tables import shards as shards_table


def state_of(ledger, shard_id):
    with ledger.connect() as connection:
        return connection.execute(sa.select(shards_table.c.state).where(shards_table.c.id == shard_id)).scalar_one()


def test_a_job_runs_to_its_end(ledger, submit, run_all):
    job = submit(rows=5, shard_rows=2)
    assert (job.status, job.total_rows) == ("queued", 5)
    run_all()
    progress = jobs.progress(ledger, job.id)
    assert progress.job.status == "completed"
    assert (progress.completed_rows, progress.failed_rows, progress.pending_rows) == (5, 0, 0)
    assert (progress.open_shards, progress.leased_shards, progress.generated_tokens) == (0, 0, 10)
    assert progress.job.started_at <= progress.job.finished_at


def test_a_shard_is_claimed_once(ledger, submit, publish):
    submit()
    first, *_ = publish()
    assert shards.claim(ledger, first, "one", 60).token == 1
    assert shards.claim(ledger, first, "two", 60) is None


def test_of_many_claims_at_once_one_wins(ledger, submit, publish):
    submit(rows=2)
    (shard_id,) = publish()
    barrier = threading.Barrier(6)
    leases = []

    def claim(owner):
        barrier.wait()
        leases.append(shards.claim(ledger, shard_id, owner, 60))

    threads = [threading.Thread(target=claim, args=(f"worker {i}",), daemon=True) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(lease is not None for lease in leases) == 1


def test_the_last_two_shards_at_once_end_the_job(ledger, submit, publish, finish):
    for _ in range(5):
        job = submit(rows=2, shard_rows=1)
        leases = [shards.claim(ledger, shard_id, "worker", 60) for shard_id in publish()]
        for lease in leases:
            finish(lease)
        threads = [threading.Thread(target=shards.complete, args=(ledger, [lease]), daemon=True) for lease in leases]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert jobs.find(ledger, job.id).status == "completed"


def test_a_worker_that_lost_its_lease_writes_nothing(ledger, submit, publish, finish, expire):
    submit(rows=2)
    (shard_id,) = publish()
    old = shards.claim(ledger, shard_id, "old", 60)
    expire(shard_id)
    assert rescue.rescue(ledger) == 1
    publish()
    new = shards.claim(ledger, shard_id, "new", 60)
    assert (new.token, new.attempt) == (2, 1)
    rows = shards.pending_rows(ledger, new)
    assert finish(old, only=rows).lost == {old}
    assert not shards.complete(ledger, [old])
    shards.release(ledger, old)
    assert shards.heartbeat(ledger, [old, new], 60).lost == {old}
    assert shards.pending_rows(ledger, new) == rows
    assert finish(new).rows == 1
    assert shards.complete(ledger, [new])


def test_a_repeated_write_changes_nothing(ledger, submit, publish, finish):
    job = submit(rows=2, samples=2)
    lease = shards.claim(ledger, *publish(), "worker", 60)
    rows = shards.pending_rows(ledger, lease)
    assert finish(lease, samples=2).rows == 2
    again = [shards.RowOutcome(lease, row.request_id, [], ("late", "late")) for row in rows]
    written = shards.write(ledger, again)
    assert (written.rows, written.duplicates, written.lost) == (0, 2, set())
    assert jobs.progress(ledger, job.id).completed_rows == 2


def test_a_shard_with_pending_rows_is_not_completed(ledger, submit, publish):
    submit(rows=2)
    lease = shards.claim(ledger, *publish(), "worker", 60)
    assert not shards.complete(ledger, [lease])
    assert state_of(ledger, lease.shard_id) == ShardState.LEASED


def test_a_heartbeat_keeps_a_lease(ledger, submit, publish, expire):
    submit(rows=2)
    lease = shards.claim(ledger, *publish(), "worker", 60)
    expire(lease.shard_id)
    assert shards.heartbeat(ledger, [lease], 60) == shards.Heartbeat(set(), set())
    assert rescue.rescue(ledger) == 0


def test_a_released_shard_is_due_at_once_and_no_attempt(ledger, submit, publish):
    submit(rows=2)
    lease = shards.claim(ledger, *publish(), "worker", 60)
    shards.release(ledger, lease)
    assert publish() == [lease.shard_id]
    assert shards.claim(ledger, lease.shard_id, "worker", 60).attempt == 0
