"""`genarm run` and `genarm job watch` as real processes, over servers that go away and come back."""

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

import db.jobs
from db.migrations import runner
from db.session import connect
from tests.children import child
from tests.faults.servers import Postgres, Redis
from tests.tiny_models import make_model
from worker.settings import Settings

OUTAGE_SECONDS = float(os.environ.get("OUTAGE_SECONDS", "3"))
"""`make chaos` takes a minute."""
GENARM = [sys.executable, "-c", "from worker.cli import main; main()"]
ROWS = 400


@pytest.fixture
def redis_server(tmp_path):
    server = Redis(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def postgres():
    with tempfile.TemporaryDirectory(prefix="genarm-postgres-") as folder:
        server = Postgres(Path(folder))
        yield server
        server.close()


@pytest.fixture
def settings(tmp_path, redis_server, postgres):
    return Settings(
        home=tmp_path / "home",
        broker_url=redis_server.url,
        database_url=postgres.url,
        allow_any_model=True,
        dtype="float32",
        max_running=1,  # so that rows are left when the outage begins, on a fast machine too
    )


@pytest.fixture
def ledger(settings):
    ledger = connect(settings.effective_database_url)
    runner.upgrade(ledger)
    yield ledger
    ledger.dispose()


@pytest.fixture
def start(settings, tmp_path):
    """Start genarm; PostgreSQL knows it by `name`."""
    with ExitStack() as stack:

        def start(name, *words):
            environment = settings.environment() | {
                "PGAPPNAME": name, "PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1",
            }  # fmt: skip
            return stack.enter_context(
                child(
                    [*GENARM, *words],
                    cwd=tmp_path,
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )

        yield start


@pytest.fixture
def dataset(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"id": index, "prompt": f"row {index}"}) + "\n" for index in range(ROWS)))
    return path


def is_connected(postgres, name):
    """Whether the command of this name has opened the ledger."""
    query = "SELECT 1 FROM pg_stat_activity WHERE application_name = %s"
    with psycopg.connect(postgres.url) as connection:
        return connection.execute(query, (name,)).fetchone() is not None


@pytest.mark.slow
@pytest.mark.timeout(600 + 4 * OUTAGE_SECONDS)
def test_run_and_watch_live_through_outages_and_say_so_once(
    start, ledger, postgres, redis_server, dataset, tmp_path, wait_until
):
    model = make_model(tmp_path / "model", seed=1)
    options = ["--base", model, "--max-new-tokens", "24", "--ignore-eos"]
    run = start("run", "run", dataset, "-o", "out.jsonl", *options)
    (job,) = wait_until(lambda: db.jobs.list_jobs(ledger), seconds=60)
    watch = start("watch", "job", "watch", job.job.id, "--json")
    wait_until(lambda: is_connected(postgres, "watch"), seconds=60)
    wait_until(lambda: db.jobs.progress(ledger, job.job.id).completed_rows, seconds=300)  # once the worker has started
    assert run.poll() is watch.poll() is None
    redis_server.kill()
    postgres.stop_immediately()
    time.sleep(OUTAGE_SECONDS)
    postgres.start()
    time.sleep(OUTAGE_SECONDS / 2)
    redis_server.start()

    said = run.communicate(timeout=240)[1]
    assert run.returncode == 0, said
    told, watched = watch.communicate(timeout=60)
    assert watch.returncode == 0, watched
    assert json.loads(told.splitlines()[-1])["completed_rows"] == ROWS
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == list(range(ROWS))
    assert all(len(row["tokens"]) == 24 for row in rows)
    for text in (said, watched):
        assert text.count("Waiting: the database at") == 1, text
        assert text.count("The database answers again.") == 1, text
    assert said.count("Waiting: Redis at") == said.count("Redis answers again.") == 1, said
