"""Whoever can push to Redis can waste a worker's time for a moment, and no more."""

import base64
import json

import db.jobs
from worker.transport import QUEUE, TASK


def message(body, task=TASK, **headers):
    """A message as Celery writes it, with a forged part."""
    return json.dumps(
        {
            "body": base64.b64encode(body if isinstance(body, bytes) else json.dumps(body).encode()).decode(),
            "headers": {"id": "x", "task": task, **headers},
            "properties": {
                "delivery_tag": "t", "delivery_info": {"exchange": "", "routing_key": QUEUE}, "body_encoding": "base64",
            },
            "content-type": "application/json",
            "content-encoding": "utf-8",
        }
    )  # fmt: skip


PICKLE = b"cos\nsystem\n(S'touch genarm-was-here'\ntR."
FORGED = [
    b"",
    b"\x80\x04\x95",
    b"[" * 100_000,
    b"null",
    b'"text"',
    b"{}",
    PICKLE,
    message([[1], {}, {}], task="os.system"),
    message([[1], {}, {}], task="celery.backend_cleanup"),
    message(PICKLE),
    message([["1; DROP TABLE jobs"], {}, {}]),
    message([[10**30], {}, {}]),
    message([[-1], {}, {}]),
    message([[True], {}, {}]),
    message([[None], {"shard_id": 1}, {}]),
    message([[[1]], {}, {}]),
    message([[999_999], {}, {}]),
    message([[1, 2, 3], {}, {}]),
    message([[1], {}, {"callbacks": [{"task": TASK, "args": [1]}]}]),
    message([[1], {}, {}], eta="2100-01-01T00:00:00"),
    message([[1], {}, {}]).replace("application/json", "application/x-python-serialize"),
    "x" * 5_000_000,
]


def test_forged_messages_are_dropped_with_a_line_and_the_job_completes(
    worker, redis_client, ledger, submit, publish, wait_until, worker_log, results
):
    process = worker()
    for forged in FORGED:
        redis_client.lpush(QUEUE, forged)
    redis_client.hset("unacked", "forged", "nonsense")
    redis_client.zadd("unacked_index", {"forged": 0})
    job_id = submit("one", "two", "three")
    publish()
    wait_until(lambda: db.jobs.find(ledger, job_id).status == "completed")
    wait_until(lambda: redis_client.llen(QUEUE) == 0)
    process.check()
    log = worker_log()
    assert log.count("dropped a") >= len(FORGED) - 1  # the one of shard 999,999 is a plain call: it names no shard
    assert "Traceback" not in log
    assert len(results(job_id)) == 3
