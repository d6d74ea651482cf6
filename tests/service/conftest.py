"""A service with a fake engine over real Redis and a real ledger, in this process or in a worker process."""

import sys
import time
from pathlib import Path

import pytest

import db.jobs
import db.results
from db.jobs import NewJob, NewRow
from tests.service.fake_engine import FakeEngine
from worker.app import make_app
from worker.dispatch import dispatch
from worker.embedded import WorkerProcess
from worker.ledger import open_ledger
from worker.settings import Settings
from worker.tasks import run_shard

FAKE_WORKER = (sys.executable, "-m", "tests.service.fake_engine")
DEADLINE_SECONDS = 20


@pytest.fixture
def settings(tmp_path, broker_url, ledger_url):
    """Quick intervals, so that no test waits long for a background thread."""
    return Settings(
        home=tmp_path / "home",
        broker_url=broker_url,
        database_url=ledger_url,
        allow_any_model=True,
        worker_threads=4,
        heartbeat_seconds=0.2,
        rescue_seconds=0.5,
        grace_seconds=0.5,
    )


@pytest.fixture
def ledger(settings):
    """The ledger, with an empty schema."""
    ledger = open_ledger(settings)
    yield ledger
    ledger.dispose()


@pytest.fixture
def submit(ledger):
    """Store a job of prompts, or of whole rows; publishes nothing."""

    def submit(*rows, base="fake", samples=1, shard_rows=2, priority=5, **spec):
        rows = [NewRow(custom_id=None, row=row if isinstance(row, dict) else {"prompt": row}) for row in rows]
        spec = {"base": base, "samples": samples, **spec}
        job = NewJob(spec=spec, name=None, priority=priority, samples=samples, shard_rows=shard_rows)
        return db.jobs.submit(ledger, job, rows).id

    return submit


@pytest.fixture
def service(settings, ledger):
    """A started service with a fake engine, without a Celery worker around it."""
    app = make_app(settings, FakeEngine)
    app.service.prepare()
    app.service.start()
    yield app.service
    app.service.drain(0)
    app.service.stop()


@pytest.fixture
def run_shards(service):
    """Run shards in this thread, as the task would."""

    def run(*shard_ids):
        for shard_id in shard_ids:
            run_shard(service, shard_id)

    return run


@pytest.fixture
def results(ledger):
    """The output rows of a job."""
    return lambda job_id: list(db.results.export_rows(ledger, job_id))


@pytest.fixture
def job(ledger):
    """The state of a job."""
    return lambda job_id: db.jobs.find(ledger, job_id)


@pytest.fixture
def publish(settings, ledger):
    """Dispatch, as the command line does after a submit."""
    app = make_app(settings, FakeEngine)
    return lambda: dispatch(app, ledger, settings)


@pytest.fixture
def worker(settings, ledger):
    """Start worker processes with the fake engine; they are stopped after the test."""
    started = []

    def start(**changes):
        process = WorkerProcess(settings.model_copy(update=changes), FAKE_WORKER)
        started.append(process)
        process.wait_until_ready(60)
        return process

    yield start
    for process in started:
        process.stop(at_once=True)


@pytest.fixture
def wait_until():
    """Poll a condition until it holds; fails after a while."""

    def wait(condition, seconds=DEADLINE_SECONDS):
        deadline = time.monotonic() + seconds
        while not (result := condition()):
            assert time.monotonic() < deadline, f"not so after {seconds} s"
            time.sleep(0.02)
        return result

    return wait


@pytest.fixture
def worker_log(settings):
    """What the worker processes have logged."""
    return lambda: Path(settings.home / "worker.log").read_text()
