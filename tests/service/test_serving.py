"""Queues per base: workers that take some bases alone, beside workers that take all, and jobs that nobody takes."""

import json
import threading
from types import SimpleNamespace

import pytest
import sqlalchemy as sa

import db.jobs
import db.publishing
import db.shards
import db.waiting
from db.clock import from_now
from db.tables import shards
from models.errors import ModelNotAllowedError
from tests.service.fake_engine import FakeEngine
from tests.service.test_shards import shard_ids_of
from tests.service.test_worker import is_done
from worker import metrics, serving
from worker.app import make_app
from worker.lookout import Lookout
from worker.serving import Serving
from worker.settings import Settings
from worker.transport import QUEUE, TASK, queue_of_base

IN_THE_MIDDLE = "\x06\x164"
"""What kombu appends to a queue's name for the default priority."""


def progress(ledger, job_id):
    return db.jobs.progress(ledger, job_id)


def test_what_is_published_and_where():
    nobody, one, both = Serving(), Serving(frozenset({"a"})), Serving(frozenset({"a"}), has_all=True)
    assert (nobody.only, one.only, both.only) == (None, {"a"}, None)
    assert nobody.queues == [QUEUE]
    assert one.queues == [queue_of_base("a")]
    assert both.queues == [QUEUE, queue_of_base("a")]
    assert [found.queue_of("a") for found in (nobody, one, both)] == [QUEUE, queue_of_base("a"), queue_of_base("a")]
    assert one.queue_of("b") == QUEUE
    assert [found.serves("b") for found in (nobody, one, both)] == [False, False, True]


def test_what_a_worker_says_ends_by_itself(redis_client, monkeypatch):
    serving.say(redis_client, ["a"])
    serving.say(redis_client, ())
    assert serving.look(redis_client) == Serving(frozenset({"a"}), has_all=True)
    monkeypatch.setattr(serving, "SAID_SECONDS", -1.0)
    serving.say(redis_client, ["a"])
    assert serving.look(redis_client) == Serving(has_all=True)
    serving.say(redis_client, ())
    assert serving.look(redis_client) == Serving()
    assert redis_client.zcard(serving.KEY) <= 1


def test_whoever_can_write_to_redis_names_no_more_queues_than_there_may_be(redis_client):
    names = {f"base {index}".encode() + b"\xff": 1e12 for index in range(serving.MOST_BASES + 5)}
    redis_client.zadd(serving.KEY, names)
    assert len(serving.look(redis_client).bases) == serving.MOST_BASES


def test_a_worker_for_one_base_takes_only_its_jobs(worker, ledger, submit, publish, wait_until):
    worker(bases=("a",))
    others, own = submit("one", "two", base="b"), submit(*map(str, range(6)), base="a")
    publish()
    wait_until(is_done(ledger, own))
    waiting = progress(ledger, others)
    assert (waiting.job.status, waiting.completed_rows, waiting.leased_shards) == ("queued", 0, 0)
    worker()
    wait_until(is_done(ledger, others))


def test_a_worker_for_all_bases_takes_from_the_queues_of_single_ones(
    worker, ledger, submit, publish, wait_until, redis_client
):
    first = worker()
    serving.say(redis_client, ["a"])
    job_id = submit("one", "two", "three", base="a")
    publish()
    wait_until(is_done(ledger, job_id))
    # Redis restarts: the queue is known after the reconnect too.
    redis_client.flushall()
    redis_client.client_kill_filter(_type="normal", skipme=True)
    serving.say(redis_client, ["a"])
    again = submit("four", base="a")
    publish()
    wait_until(is_done(ledger, again))
    assert first.pid


def test_messages_of_a_worker_that_went_away_are_sent_again_to_others(
    settings, ledger, submit, publish, redis_client, monkeypatch
):
    serving.say(redis_client, ["a"])
    submit("one", base="a")
    assert publish() == 1
    assert redis_client.llen(queue_of_base("a") + IN_THE_MIDDLE) == 1
    redis_client.delete(serving.KEY)
    assert publish() == 0
    monkeypatch.setattr("worker.dispatch.LOST_SECONDS", -1.0)
    assert publish() == 1
    assert redis_client.llen(QUEUE + IN_THE_MIDDLE) == 1


def test_a_forged_message_in_the_queue_of_a_base_runs_no_other_base(
    worker, settings, ledger, submit, publish, wait_until, worker_log, redis_client
):
    worker(bases=("a",))
    others = submit("one", base="b")
    app = make_app(settings, FakeEngine)
    app.send_task(TASK, args=shard_ids_of(ledger), queue=queue_of_base("a"), priority=4)
    wait_until(lambda: "has the base 'b', which this worker does not serve" in worker_log())
    redis_client.lpush(queue_of_base("a"), json.dumps({"task": "os.system"}))
    own = submit("two", base="a")
    publish()
    wait_until(is_done(ledger, own))
    wait_until(lambda: "dropped a queue entry" in worker_log())
    waiting = progress(ledger, others)
    assert (waiting.completed_rows, waiting.failed_rows, waiting.leased_shards) == (0, 0, 0)


def test_a_worker_takes_jobs_by_every_name_of_its_base(settings, tmp_path):
    settings.home.mkdir()
    commit = "1" * 40
    (settings.home / "models.toml").write_text(
        f'[models.big]\nkind = "base"\nhub = "org/big"\nrevision = "{commit}"\n'
        '[models.small]\nkind = "base"\npath = "shelf/small"\n'
    )
    named = serving.with_all_names(settings.model_copy(update={"bases": ("big", str(settings.home / "shelf/small"))}))
    assert named.bases == ("big", "org/big", "small", str(settings.home / "shelf/small"))
    with pytest.raises(ModelNotAllowedError, match=r"'none' is not in the registry.*it has: big, small"):
        serving.with_all_names(settings.model_copy(update={"bases": ("none",)}))


def test_the_bases_come_through_the_environment(monkeypatch):
    monkeypatch.setenv("GENARM_BASES", "big, small,")
    settings = Settings()
    assert settings.bases == ("big", "small")
    assert settings.environment()["GENARM_BASES"] == "big,small"
    monkeypatch.delenv("GENARM_BASES")
    assert Settings().bases == ()


def gauge(metric):
    return metric._value.get()


def test_what_nobody_serves_and_what_waits_for_redis_is_measured(
    service, ledger, submit, publish, redis_client, monkeypatch
):
    lookout = service.lookout
    submit("one", base="a")
    submit("two", base="b")
    lookout.look()
    assert gauge(metrics.UNSERVED_JOBS) == 0
    say = serving.say
    monkeypatch.setattr(serving, "say", lambda client, bases: None)
    redis_client.delete(serving.KEY)
    say(redis_client, ["a"])
    lookout.look()
    assert gauge(metrics.UNSERVED_JOBS) == 1
    assert db.waiting.jobs_by_base(ledger) == {"a": 1, "b": 1}


def test_the_outbox_lag_is_the_wait_of_the_oldest_message_or_of_what_cannot_be_sent(ledger, submit, settings):
    assert db.waiting.outbox(ledger) == db.waiting.Outbox(0.0, is_unsent=False)
    job_id = submit("one", "two", "three")
    assert db.waiting.outbox(ledger) == db.waiting.Outbox(0.0, is_unsent=True)
    tickets = db.publishing.due(ledger, window=1, republish_after_seconds=1e9)
    with ledger.begin() as connection:
        connection.execute(
            sa.update(shards).values(published_at=from_now(-30)).where(shards.c.published_at.is_not(None))
        )
    waiting = db.waiting.outbox(ledger)
    assert (round(waiting.seconds), waiting.is_unsent) == (30, False)
    lease = db.shards.claim(ledger, tickets[0].shard_id, "me", 60)
    assert db.waiting.outbox(ledger) == db.waiting.Outbox(0.0, is_unsent=True)
    db.jobs.cancel(ledger, job_id)
    assert db.waiting.outbox(ledger) == db.waiting.Outbox(0.0, is_unsent=False)
    assert lease is not None


def test_a_lookout_counts_how_long_nothing_could_be_sent(settings, ledger, submit, monkeypatch):
    app = make_app(settings, FakeEngine)
    backends = app.service.database, app.service.broker
    lookout = Lookout(app, ledger, settings, *backends, threading.Event())
    submit("one")
    clock = iter([100.0, 100.0, 107.5])
    monkeypatch.setattr("worker.lookout.time", SimpleNamespace(monotonic=lambda: next(clock)))
    lookout._measure(None)
    assert gauge(metrics.OUTBOX_LAG) == 0
    lookout._measure(None)
    assert gauge(metrics.OUTBOX_LAG) == 7.5


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_a_worker_that_drains_no_longer_says_that_it_serves(settings, ledger, redis_client):
    app = make_app(settings, FakeEngine)
    lookout = Lookout(app, ledger, settings, app.service.database, app.service.broker, threading.Event())
    app.service.is_draining = True
    lookout.look()
    assert serving.look(redis_client) == Serving()
    app.service.is_draining = False
    lookout.look()
    assert serving.look(redis_client) == Serving(has_all=True)
