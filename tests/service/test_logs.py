"""What is logged, in which form, and what never is."""

import json
import logging

import pytest
import sqlalchemy as sa

from tests.service.fake_engine import BREAK
from tests.service.test_worker import is_done
from worker import logs


@pytest.fixture
def lines():
    """Log through a formatter, and return what it writes."""

    def write(formatter, message, *arguments, **options):
        record = logging.LogRecord("worker.test", logging.INFO, "f", 1, message, arguments, options.get("exc_info"))
        return formatter.format(record)

    return write


@pytest.mark.parametrize("formatter", [logs.JsonFormatter(), logs.ConsoleFormatter()])
@pytest.mark.parametrize(
    "url",
    [
        "redis://:hunter2@host:6379/0",
        "rediss://user:hunter2@host/0",
        "postgresql://me:hunter2@host/x",
        "redis://:hunter2%40@h",
    ],
)
def test_no_password_of_a_url_is_logged(lines, formatter, url):
    try:
        raise OSError(f"no answer from {url}")
    except OSError as error:
        written = lines(formatter, "lost %s", url, exc_info=(type(error), error, error.__traceback__))
    assert "hunter2" not in written
    assert written.count("***@h") == 2


def test_lines_carry_the_ids_of_what_they_are_about(lines):
    with logs.about(job="job-1", shard=7):
        with logs.about(request=9):
            inner = json.loads(lines(logs.JsonFormatter(), "hello"))
        outer = lines(logs.ConsoleFormatter("%(message)s"), "hello")
    assert (inner["job"], inner["shard"], inner["request"], inner["message"]) == ("job-1", 7, 9, "hello")
    assert outer == "hello [job=job-1 shard=7]"
    assert lines(logs.ConsoleFormatter("%(message)s"), "hello") == "hello"


def test_a_worker_logs_json_with_the_ids_of_each_shard(worker, ledger, submit, publish, wait_until, worker_log):
    worker(log_format="json")
    job_id = submit("one", BREAK)
    publish()
    wait_until(is_done(ledger, job_id))
    wait_until(lambda: "2 rows" in worker_log())
    assert "[queues]" not in worker_log()  # Celery's banner
    lines = [json.loads(line) for line in worker_log().splitlines() if line.startswith("{")]
    (done,) = [line for line in lines if "2 rows" in line["message"]]
    (failed,) = [line for line in lines if "a bug" in line["message"]]
    assert done["job"] == failed["job"] == job_id
    assert done["shard"] == failed["shard"] > 0
    assert failed["request"] > 0
    assert "RuntimeError: a bug" in failed["exception"]
    assert done["logger"] == "worker.tasks"


def test_errors_of_the_database_do_not_hold_the_values(ledger):
    with ledger.connect() as connection, pytest.raises(sa.exc.DBAPIError) as failed:
        connection.execute(sa.text("SELECT :prompt FROM nowhere"), {"prompt": "hunter2"})
    assert "hunter2" not in str(failed.value)
