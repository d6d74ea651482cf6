"""The simulation of docs/deploy.md against what can be worked out by hand."""

import pytest

from benchmarks.scaleout import LOCKED, Setup, simulate

COSTS = {"publish": 0.001, "claim": 0.001, "complete": 0.001, "read": 0.001, "write": 0.01, "heartbeat": 0.0}


def test_few_workers_reach_their_own_speed():
    found = simulate(Setup(workers=10, shard_rows=32), COSTS)
    assert found.rows_per_second == pytest.approx(100, rel=0.05)
    assert found.lock_load == pytest.approx(100 / 32 * 0.003, rel=0.1)
    assert found.database_load == pytest.approx(100 / 32 * 0.014 / 8, rel=0.1)


def test_the_lock_of_a_job_bounds_all_workers_together():
    slow = COSTS | dict.fromkeys(LOCKED, 0.01)
    found = simulate(Setup(workers=160, shard_rows=32, cores=1000), slow)
    assert found.rows_per_second == pytest.approx(32 / 0.03, rel=0.05)
    assert found.lock_load > 0.95
    twice = simulate(Setup(workers=320, shard_rows=32, cores=1000, jobs=2), slow)
    assert twice.rows_per_second == pytest.approx(2 * 32 / 0.03, rel=0.05)


def test_the_database_bounds_them_next():
    found = simulate(Setup(workers=600, shard_rows=32, cores=2, jobs=100), COSTS)
    assert found.rows_per_second == pytest.approx(2 * 32 / 0.014, rel=0.07)
    assert found.database_load > 0.95
