"""The simulation of docs/deploy.md against what can be worked out by hand."""

import pytest

from benchmarks.scaleout import Locks, Setup, measure_locks, simulate

LOCKED = ("publish", "claim", "complete")
LOCKS = Locks(exclusive=frozenset(LOCKED))
COSTS = {"publish": 0.001, "claim": 0.001, "complete": 0.001, "read": 0.001, "write": 0.01, "heartbeat": 0.0}


def test_few_workers_reach_their_own_speed():
    found = simulate(Setup(workers=10, shard_rows=32), COSTS, LOCKS)
    assert found.rows_per_second == pytest.approx(100, rel=0.05)
    assert found.lock_load == pytest.approx(100 / 32 * 0.003, rel=0.1)
    assert found.database_load == pytest.approx(100 / 32 * 0.014 / 8, rel=0.1)


def test_the_lock_of_a_job_bounds_all_workers_together():
    slow = COSTS | dict.fromkeys(LOCKED, 0.01)
    found = simulate(Setup(workers=160, shard_rows=32, cores=1000), slow, LOCKS)
    assert found.rows_per_second == pytest.approx(32 / 0.03, rel=0.05)
    assert found.lock_load > 0.95
    twice = simulate(Setup(workers=320, shard_rows=32, cores=1000, jobs=2), slow, LOCKS)
    assert twice.rows_per_second == pytest.approx(2 * 32 / 0.03, rel=0.05)


def test_the_database_bounds_them_next():
    found = simulate(Setup(workers=600, shard_rows=32, cores=2, jobs=100), COSTS, LOCKS)
    assert found.rows_per_second == pytest.approx(2 * 32 / 0.014, rel=0.07)
    assert found.database_load > 0.95


def test_those_that_share_the_lock_bound_nobody():
    slow = COSTS | dict.fromkeys(LOCKED, 0.01)
    locks = Locks(exclusive=frozenset({"complete"}), shared=frozenset({"claim"}))
    found = simulate(Setup(workers=480, shard_rows=32, cores=1000), slow, locks)
    # Each end waits for claims that began before it: between one and two turns of a shard.
    assert 32 / 0.02 < found.rows_per_second <= 32 / 0.01
    alone = simulate(Setup(workers=480, shard_rows=32, cores=1000), slow, Locks(exclusive=frozenset({"complete"})))
    assert alone.rows_per_second == pytest.approx(32 / 0.01, rel=0.05)


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_which_operations_lock_a_job_is_found_out(ledger, monkeypatch):
    monkeypatch.setattr("benchmarks.scaleout.BLOCKED_SECONDS", 2.0)
    found = measure_locks(ledger)
    assert "complete" in found.exclusive  # of the last two shards, the second must see what the first did
    assert "claim" in found.exclusive | found.shared  # a job that ends, or is cancelled, is not claimed from
    assert "read" not in found.exclusive | found.shared
