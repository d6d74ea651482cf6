"""A backend that goes away and comes back."""

import threading

import pytest
import sqlalchemy as sa

import db.rescue
import db.shards
from db.errors import DatabaseUnreachableError
from db.tables import shards
from tests.service.fake_engine import HOLD
from worker.company import Company
from worker.patience import Patience
from worker.tasks import run_shard


@pytest.fixture
def settings(settings):
    """No background thread does anything of its own accord."""
    return settings.model_copy(update={"rescue_seconds": 1000.0, "heartbeat_seconds": 1000.0})


def away():
    raise DatabaseUnreachableError("connection refused")


def shard_ids_of(ledger):
    with ledger.connect() as connection:
        return list(connection.execute(sa.select(shards.c.id)).scalars())


def test_an_outage_is_said_once_however_many_calls_fail(caplog):
    patience = Patience("the database", DatabaseUnreachableError, threading.Event())
    for _ in range(5):
        assert patience.attempt(away) is None
    assert patience.attempt(lambda: 7) == 7
    assert patience.attempt(lambda: 8) == 8
    assert [record.message for record in caplog.records] == [
        "the database is away, waiting for it: connection refused",
        "the database is back",
    ]


def test_after_an_outage_heartbeats_come_before_the_rescue(ledger, service, submit, expire):
    """All leases ran out while the database was away, and their workers live."""
    submit("one")
    (shard_id,) = shard_ids_of(ledger)
    lease = db.shards.claim(ledger, shard_id, "another worker", 60)
    expire(shard_id)
    service.database.attempt(away)
    service.rescuer.rescue_pass()
    assert db.shards.heartbeat(ledger, [lease], 60).lost == set()


def test_what_is_finished_while_the_database_is_away_is_written_later(
    ledger, service, submit, results, monkeypatch, wait_until
):
    job_id = submit("one", HOLD)
    (shard_id,) = shard_ids_of(ledger)
    genuine, refused, is_back = db.shards.write, threading.Event(), threading.Event()

    def write(*arguments):
        if not is_back.is_set():
            refused.set()
            away()
        return genuine(*arguments)

    monkeypatch.setattr(db.shards, "write", write)
    thread = threading.Thread(target=run_shard, args=(service, shard_id), daemon=True)
    thread.start()
    assert refused.wait(10)
    service.engines.engine.wait_for_held(1)
    service.engines.engine.release()
    assert results(job_id) == []
    is_back.set()
    thread.join(20)
    assert [row["completion"] for row in results(job_id)] == ["eno", HOLD[::-1]]
    assert len(service.engines.engine.submitted) == 2


def test_a_claim_waits_for_the_database(ledger, service, submit, results, monkeypatch):
    job_id = submit("one")
    genuine, calls = db.shards.claim, []

    def claim(*arguments):
        calls.append(arguments)
        return away() if len(calls) < 3 else genuine(*arguments)

    monkeypatch.setattr(db.shards, "claim", claim)
    run_shard(service, *shard_ids_of(ledger))
    assert len(results(job_id)) == 1


def test_a_stop_does_not_wait_for_a_database_that_is_away(ledger, service, submit, monkeypatch):
    submit("one")
    refused = threading.Event()

    def write(*arguments):
        refused.set()
        away()

    monkeypatch.setattr(db.shards, "write", write)
    thread = threading.Thread(target=run_shard, args=(service, *shard_ids_of(ledger)), daemon=True)
    thread.start()
    assert refused.wait(10)
    service.drain(0)
    service.stop()
    thread.join(10)
    assert not thread.is_alive()


def test_one_that_waits_to_be_alone_lets_others_end_and_none_begin():
    company, order = Company(), []
    beside_runs, beside_may_end = threading.Event(), threading.Event()

    def beside():
        with company.shared():
            beside_runs.set()
            beside_may_end.wait(10)
            order.append("beside")

    def late():
        with company.shared():
            order.append("late")

    def suspect():
        with company.shared(), company.alone(give_up=lambda: False) as is_alone:
            assert is_alone
            order.append("alone")

    threads = [threading.Thread(target=target, daemon=True) for target in (beside, suspect, late)]
    threads[0].start()
    beside_runs.wait(10)
    threads[1].start()
    with company._changed:
        company._changed.wait_for(lambda: company._alone_waiting, 10)
    threads[2].start()
    beside_may_end.set()
    for thread in threads:
        thread.join(10)
    assert order == ["beside", "alone", "late"]


def test_one_that_gives_up_to_be_alone_leaves_the_way_free():
    company = Company()
    with company.shared(), company.alone(give_up=lambda: True) as is_alone:
        assert not is_alone
    with company.shared():
        pass
