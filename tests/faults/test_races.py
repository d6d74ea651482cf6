"""What another worker, a cancel or a lost connection does to a shard between any two of its steps.

Each race is set up at a named fault point, so that it happens every time.
"""

import threading

import pytest
import sqlalchemy as sa

import db.jobs
import db.rescue
import db.shards
from db.errors import DatabaseUnreachableError
from db.faults import Point
from db.shards import NewCompletion, RowOutcome
from db.tables import shards
from tests.service.fake_engine import HOLD
from worker.tasks import run_shard


@pytest.fixture
def settings(settings):
    """No background thread does anything of its own accord."""
    return settings.model_copy(update={"rescue_seconds": 1000.0, "heartbeat_seconds": 1000.0})


@pytest.fixture
def the_shard(ledger, submit):
    """The id of the one shard of a job of two rows, and the job's id."""
    job_id = submit("one", "two")
    with ledger.connect() as connection:
        return connection.execute(sa.select(shards.c.id)).scalar_one(), job_id


@pytest.fixture
def take_over(ledger, expire):
    """Another worker takes the shard, because the lease ran out, and does all that is left."""

    def take_over(shard_id, until_done=True):
        expire(shard_id)
        assert db.rescue.rescue(ledger) == 1
        for part in open_shards(ledger):
            lease = db.shards.claim(ledger, part, "other", 60)
            rows = db.shards.pending_rows(ledger, lease)
            db.shards.write(ledger, [outcome(lease, row) for row in rows])
            if until_done:
                assert db.shards.complete(ledger, [lease])

    return take_over


def open_shards(ledger):
    with ledger.connect() as connection:
        to_do = shards.c.state.in_(("open", "published"))
        return list(connection.execute(sa.select(shards.c.id).where(to_do).order_by(shards.c.id)).scalars())


def outcome(lease, row):
    return RowOutcome(lease, row.request_id, [NewCompletion(0, "by the other", "stop", [7], [0.0], [0.0], {}, 1)], None)


def counts_of(ledger, job_id):
    progress = db.jobs.progress(ledger, job_id)
    return progress.job.status, progress.completed_rows, progress.failed_rows, progress.generated_tokens


MINE, OTHERS = ["eno", "owt"], ["by the other"] * 2


@pytest.mark.parametrize("until_done", [True, False], ids=["and is done", "and goes on"])
@pytest.mark.parametrize(
    ("point", "texts"),
    [
        (Point.AFTER_CLAIM, OTHERS),
        (Point.AFTER_GENERATE, OTHERS),
        (Point.AFTER_COMMIT, MINE),
    ],
    ids=lambda value: value.name.lower() if isinstance(value, Point) else "",
)
def test_a_worker_that_is_overtaken_changes_nothing(
    ledger, run_shards, the_shard, take_over, once, results, point, texts, until_done
):
    shard_id, job_id = the_shard
    once(point, lambda: take_over(shard_id, until_done))
    run_shards(shard_id)
    assert [row["completion"] for row in results(job_id)] == texts
    if until_done or texts == MINE:
        tokens = 6 if texts == MINE else 2
        assert counts_of(ledger, job_id) == ("completed", 2, 0, tokens)
    else:
        assert db.jobs.progress(ledger, job_id).leased_shards == 2


def test_of_a_commit_and_a_rescue_at_once_the_commit_goes_first(ledger, run_shards, the_shard, expire, once, results):
    shard_id, job_id = the_shard
    rescued = []
    rescuer = threading.Thread(target=lambda: rescued.append(db.rescue.rescue(ledger)), daemon=True)
    once(Point.AFTER_GENERATE, lambda: expire(shard_id))
    once(Point.INSIDE_COMMIT, rescuer.start)
    run_shards(shard_id)
    rescuer.join(30)
    db.rescue.rescue(ledger)
    assert not rescuer.is_alive()
    assert [row["completion"] for row in results(job_id)] == MINE
    assert counts_of(ledger, job_id) == ("completed", 2, 0, 6)


def test_a_commit_that_is_cut_off_is_repeated(ledger, run_shards, the_shard, once, results):
    shard_id, job_id = the_shard

    def cut_off():
        raise sa.exc.OperationalError("COMMIT", {}, Exception("server closed the connection unexpectedly"))

    once(Point.INSIDE_COMMIT, cut_off)
    run_shards(shard_id)
    assert [row["completion"] for row in results(job_id)] == MINE
    assert counts_of(ledger, job_id) == ("completed", 2, 0, 6)


@pytest.mark.parametrize("step", ["claim", "write", "complete", "pending_rows"])
def test_a_step_whose_answer_got_lost_is_repeated_without_harm(
    ledger, run_shards, the_shard, expire, monkeypatch, results, step
):
    shard_id, job_id = the_shard
    genuine, calls = getattr(db.shards, step), []

    def lose_the_first_answer(*arguments, **options):
        answer = genuine(*arguments, **options)
        calls.append(step)
        if len(calls) == 1:
            raise DatabaseUnreachableError("the answer got lost")
        return answer

    monkeypatch.setattr(db.shards, step, lose_the_first_answer)
    run_shards(shard_id)
    if step == "claim":
        # The lease is there, and nobody knows of it: it runs out.
        assert results(job_id) == []
        expire(shard_id)
        db.rescue.rescue(ledger)
        run_shards(*open_shards(ledger))
    assert [row["completion"] for row in results(job_id)] == MINE
    assert counts_of(ledger, job_id) == ("completed", 2, 0, 6)


@pytest.mark.parametrize(
    ("point", "texts", "status"),
    [
        (Point.AFTER_CLAIM, MINE, "completed"),
        (Point.AFTER_GENERATE, MINE, "completed"),
        (Point.AFTER_COMMIT, MINE, "completed"),
        (Point.BEFORE_ACK, MINE, "completed"),
    ],
    ids=lambda value: value.name.lower() if isinstance(value, Point) else "",
)
def test_a_cancel_between_any_two_steps_ends_the_job(
    ledger, run_shards, the_shard, once, results, job, point, texts, status
):
    shard_id, job_id = the_shard
    once(point, lambda: db.jobs.cancel(ledger, job_id))
    run_shards(shard_id)
    assert [row["completion"] for row in results(job_id)] == texts
    assert job(job_id).status == status


@pytest.mark.parametrize("point", [Point.AFTER_CLAIM, Point.AFTER_GENERATE, Point.AFTER_COMMIT, Point.BEFORE_ACK])
def test_a_second_message_at_any_moment_changes_nothing(ledger, service, the_shard, once, results, point):
    shard_id, job_id = the_shard
    once(point, lambda: run_shard(service, shard_id))
    run_shard(service, shard_id)
    assert [row["completion"] for row in results(job_id)] == MINE
    assert len(service.engines.engine.submitted) == 2
    assert counts_of(ledger, job_id) == ("completed", 2, 0, 6)


def test_a_job_deleted_under_a_worker_is_dropped_quietly(ledger, run_shards, the_shard, once, caplog):
    shard_id, job_id = the_shard

    def cancel_and_delete():
        db.jobs.fail_job(ledger, job_id, "model_error", "broken")
        db.jobs.delete(ledger, job_id)

    once(Point.AFTER_GENERATE, cancel_and_delete)
    run_shards(shard_id)
    assert db.jobs.list_jobs(ledger) == []
    assert "Traceback" not in caplog.text


def test_a_suspect_row_waits_until_its_worker_runs_nothing_else(ledger, service, submit, expire, wait_until, results):
    job_id = submit("suspect", HOLD, shard_rows=1)
    first, second = open_shards(ledger)
    db.shards.claim(ledger, first, "dead", 60)
    expire(first)
    db.rescue.rescue(ledger)
    engine = service.engines.engine
    beside = threading.Thread(target=run_shard, args=(service, second), daemon=True)
    beside.start()
    engine.wait_for_held(1)
    suspect = threading.Thread(target=run_shard, args=(service, first), daemon=True)
    suspect.start()
    wait_until(lambda: db.jobs.progress(ledger, job_id).leased_shards == 2)
    assert [row.prompt for row in engine.submitted] == [HOLD]
    engine.release()
    beside.join(10)
    suspect.join(10)
    assert [row.prompt for row in engine.submitted] == [HOLD, "suspect"]
    assert len(results(job_id)) == 2
