"""Worker processes that are killed, stopped or cut off at the worst moment, over real servers."""

import os
import signal
import sys

import pytest

import db.jobs
from db.faults import Point
from tests.service.fake_engine import DIE, END, HOLD
from worker.embedded import WorkerProcess

LEASE_SECONDS = 1.0


@pytest.fixture
def settings(settings):
    """A lease that runs out soon."""
    return settings.model_copy(update={"lease_seconds": LEASE_SECONDS, "rescue_seconds": 0.2})


@pytest.fixture
def doomed_worker(settings, ledger):
    """Start a worker that kills itself when it first comes to a fault point."""
    started = []

    def start(point):
        command = (sys.executable, "-m", "tests.faults.doomed_worker", f"--die-at={point.name}")
        started.append(WorkerProcess(settings, command))
        started[-1].wait_until_ready(60)
        return started[-1]

    yield start
    for process in started:
        process.stop(at_once=True)


def has_died(process):
    try:
        process.check()
    except Exception:
        return True
    return False


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("point", Point)
def test_a_worker_killed_at_any_step_costs_nothing(
    doomed_worker, worker, ledger, submit, publish, results, wait_until, point
):
    doomed = doomed_worker(point)
    prompts = [f"row {index}" for index in range(7)]
    job_id = submit(*prompts, shard_rows=4)
    publish()
    wait_until(lambda: has_died(doomed))
    worker()
    wait_until(lambda: db.jobs.find(ledger, job_id).status == "completed")
    assert [row["completion"] for row in results(job_id)] == [prompt[::-1] for prompt in prompts]
    progress = db.jobs.progress(ledger, job_id)
    assert (progress.completed_rows, progress.failed_rows, progress.open_shards) == (7, 0, 0)
    assert progress.generated_tokens == sum(map(len, prompts))


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(("deadly", "status"), [(DIE, -signal.SIGKILL), (END, 1)])
def test_a_row_that_kills_its_process_or_ends_the_engine_fails_alone(
    settings, worker, ledger, submit, publish, results, wait_until, deadly, status
):
    prompts = [f"row {index}" for index in range(32)]
    prompts[21] = deadly
    job_id = submit(*prompts, shard_rows=32)
    publish()

    def has_ended():
        return db.jobs.find(ledger, job_id).status.is_final

    for _ in range(15):
        running = worker()
        wait_until(lambda running=running: has_died(running) or has_ended())
        if has_ended():
            break
        assert running.stop() == status
    rows = results(job_id)
    assert [row["error"]["code"] for row in rows if row["error"]] == ["worker_died"]
    assert [row.get("completion") for row in rows] == [None if p == deadly else p[::-1] for p in prompts]


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_a_worker_that_sleeps_past_its_lease_wakes_up_to_nothing(worker, ledger, submit, publish, results, wait_until):
    sleeper = worker(worker_threads=1)
    job_id = submit(HOLD, "two", shard_rows=1)
    publish()
    wait_until(lambda: db.jobs.progress(ledger, job_id).leased_shards == 1)
    os.kill(sleeper.pid, signal.SIGSTOP)
    worker()
    wait_until(lambda: len(results(job_id)) == 1)
    wait_until(lambda: attempts_of(ledger, job_id) >= 1)
    os.kill(sleeper.pid, signal.SIGCONT)
    wait_until(lambda: db.jobs.progress(ledger, job_id).leased_shards == 1)
    db.jobs.cancel(ledger, job_id)
    wait_until(lambda: db.jobs.find(ledger, job_id).status == "cancelled")
    assert [row["id"] for row in results(job_id)] == [1]


def attempts_of(ledger, job_id):
    import sqlalchemy as sa

    from db.tables import shards

    with ledger.connect() as connection:
        return connection.execute(sa.select(sa.func.max(shards.c.attempts)).where(shards.c.job_id == job_id)).scalar()


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGTERM, signal.SIGTERM], [signal.SIGQUIT]])
def test_a_worker_that_is_stopped_hands_its_rows_to_another(
    worker, ledger, submit, publish, results, wait_until, worker_log, signals
):
    grace_seconds = 1.0 if len(signals) == 1 else 60.0
    leaving = worker(grace_seconds=grace_seconds, lease_seconds=60.0)
    job_id = submit(HOLD, "two", HOLD)
    publish()
    wait_until(lambda: results(job_id))
    other = worker(lease_seconds=60.0)
    os.kill(leaving.pid, signals[0])
    if len(signals) > 1:
        wait_until(lambda: "Warm shutdown" in worker_log())
        os.kill(leaving.pid, signals[1])
    wait_until(lambda: has_died(leaving), seconds=20)
    assert leaving.stop() == 0
    wait_until(lambda: db.jobs.progress(ledger, job_id).leased_shards == 2, seconds=10)
    assert attempts_of(ledger, job_id) == 0
    assert other.pid != leaving.pid
    assert [row["id"] for row in results(job_id)] == [1]
