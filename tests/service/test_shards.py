"""One shard through the service with a fake engine, over a real ledger and a real Redis; no Celery worker around it."""

import os
import signal
import threading

import pytest
import sqlalchemy as sa

import db.jobs
import db.shards
from db.tables import shards
from tests.service.fake_engine import BREAK, END, HOLD, LOST_DEVICE, MISSING_BASE, REFUSE, UNSTORABLE
from worker.tasks import run_shard


def shard_ids_of(ledger):
    with ledger.connect() as connection:
        return list(connection.execute(sa.select(shards.c.id).order_by(shards.c.id)).scalars())


def test_each_row_gets_its_outcome_and_the_job_ends(ledger, submit, run_shards, results, job):
    job_id = submit("one", REFUSE, "three", BREAK, UNSTORABLE, {"nothing": 1}, shard_rows=3)
    run_shards(*shard_ids_of(ledger))
    rows = results(job_id)
    codes = [row["error"] and row["error"]["code"] for row in rows]
    assert codes == [None, "prompt_too_long", None, "engine_error", "not_storable", "invalid_prompt"]
    assert (rows[0]["completion"], rows[2]["completion"]) == ("eno", "eerht")
    assert job(job_id).status == "completed"


def test_a_message_for_a_shard_that_is_done_or_unknown_changes_nothing(ledger, submit, run_shards, results):
    job_id = submit("one")
    shard_ids = shard_ids_of(ledger)
    run_shards(*shard_ids, *shard_ids, 999_999)
    assert len(results(job_id)) == 1


@pytest.mark.parametrize(("base", "code"), [(MISSING_BASE, "model_not_found"), (BREAK, "model_error")])
def test_a_job_whose_model_cannot_be_loaded_fails(ledger, submit, run_shards, results, job, base, code):
    job_id = submit("one", "two", base=base)
    run_shards(*shard_ids_of(ledger))
    assert (job(job_id).status, job(job_id).error_code) == ("failed", code)
    assert [row["error"]["code"] for row in results(job_id)] == [code] * 2


def test_a_cancelled_job_lets_go_of_its_rows(service, ledger, submit, job, wait_until):
    job_id = submit(HOLD, "two")
    (shard_id,) = shard_ids_of(ledger)
    thread = threading.Thread(target=run_shard, args=(service, shard_id), daemon=True)
    thread.start()
    service.engines.engine.wait_for_held(1)
    db.jobs.cancel(ledger, job_id)
    thread.join(10)
    assert not thread.is_alive()
    assert job(job_id).status == "cancelled"


def test_an_engine_that_ends_stops_its_worker_and_its_shards_count_as_tried(
    service, ledger, submit, results, wait_until, monkeypatch
):
    kills = []
    monkeypatch.setattr("worker.service.os.kill", lambda *arguments: kills.append(arguments))
    job_id = submit(HOLD, "two", END, shard_rows=2)
    held, ending = shard_ids_of(ledger)
    thread = threading.Thread(target=run_shard, args=(service, held), daemon=True)
    thread.start()
    service.engines.engine.wait_for_held(1)
    run_shard(service, ending)
    thread.join(10)
    assert not thread.is_alive()
    assert kills == [(os.getpid(), signal.SIGTERM)]
    assert service.is_draining
    wait_until(lambda: [row["id"] for row in results(job_id)] == [1])  # what was finished is kept
    assert db.shards.claim(ledger, held, "another", 60) is None  # as after a death, it waits for the end of the lease
    assert db.shards.claim(ledger, ending, "another", 60) is None


def test_a_lost_device_stops_the_worker_and_fails_no_job(service, ledger, submit, job, monkeypatch):
    kills = []
    monkeypatch.setattr("worker.service.os.kill", lambda *arguments: kills.append(arguments))
    job_id = submit("one", base=LOST_DEVICE)
    run_shard(service, *shard_ids_of(ledger))
    assert kills == [(os.getpid(), signal.SIGTERM)]
    assert job(job_id).status == "in_progress"


def test_a_drained_service_hands_its_shard_back(service, ledger, submit, results):
    job_id = submit(HOLD, "two")
    (shard_id,) = shard_ids_of(ledger)
    thread = threading.Thread(target=run_shard, args=(service, shard_id), daemon=True)
    thread.start()
    service.engines.engine.wait_for_held(1)
    service.drain(0)
    thread.join(10)
    lease = db.shards.claim(ledger, shard_id, "another", 60)
    assert (lease.attempt, lease.token) == (0, 2)
    assert [row.index for row in db.shards.pending_rows(ledger, lease)] == [0]
    assert [row["id"] for row in results(job_id)] == [1]
