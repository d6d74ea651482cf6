"""Jobs with results."""

import pytest

from tests.results import filled


@pytest.fixture
def submit(ledger):
    """Store a job."""
    return lambda rows, **more: filled.submit(ledger, rows, **more)


@pytest.fixture
def fill(ledger):
    """Fill a job with results."""
    return lambda job, **more: filled.fill(ledger, job, **more)


@pytest.fixture
def finished(submit, fill):
    """A job that is done."""

    def finished(rows, failing=(), **more):
        job = submit(rows, **more)
        fill(job, failing=failing)
        return job

    return finished
