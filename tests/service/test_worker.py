"""Worker processes with a fake engine over real Redis and a real ledger."""

import os
import signal

import pytest
import redis

import db.jobs
from tests.service.fake_engine import HOLD


def is_done(ledger, job_id):
    return lambda: db.jobs.find(ledger, job_id).status == "completed"


def test_two_workers_run_a_job(worker, ledger, submit, publish, results, wait_until):
    worker()
    worker()
    job_id = submit(*[f"row {i}" for i in range(40)])
    publish()
    wait_until(is_done(ledger, job_id))
    assert [row["completion"] for row in results(job_id)] == [f"row {i}"[::-1] for i in range(40)]


def test_a_job_that_nobody_announced_is_found(worker, ledger, submit, wait_until):
    worker()
    job_id = submit("one", "two")
    wait_until(is_done(ledger, job_id))


def test_a_lost_queue_is_filled_again(worker, ledger, submit, publish, redis_client, wait_until):
    job_id = submit("one", "two", "three")
    publish()
    redis_client.flushall()
    worker()
    wait_until(is_done(ledger, job_id))


def test_the_rows_of_a_killed_worker_are_done_by_another(worker, ledger, submit, publish, results, wait_until):
    first = worker(lease_seconds=1.0)
    job_id = submit(HOLD, "two")
    publish()
    wait_until(lambda: results(job_id))
    os.kill(first.pid, signal.SIGKILL)
    second = worker(lease_seconds=1.0)
    wait_until(lambda: db.jobs.progress(ledger, job_id).leased_shards == 1)
    assert second.pid != first.pid
    assert [row["id"] for row in results(job_id)] == [1]


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_the_embedded_redis_is_started_again_where_it_dies(settings, ledger, submit, worker, wait_until, tmp_path):
    embedded = settings.model_copy(update={"broker_url": None})
    worker(broker_url=None)
    with redis.Redis(unix_socket_path=str(embedded.redis_socket)) as client:
        os.kill(client.info()["process_id"], signal.SIGKILL)
    job_id = submit("one", "two")
    wait_until(is_done(ledger, job_id))
