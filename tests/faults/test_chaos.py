"""A short cut of `make chaos`: each kind of fault once or twice."""

import pytest

from tests.faults.chaos import chaos


@pytest.mark.parametrize(("database", "faults", "seed"), [("postgresql", 12, 3), ("sqlite", 8, 4)])
def test_every_row_is_whole_after_random_faults(tmp_path, monkeypatch, database, faults, seed):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    done = chaos(tmp_path, database, rows=240, faults=faults, seed=seed, say=print)
    assert done.total() == faults
