"""Redis behind a Sentinel: a worker finds the master by its name, and the new one after a failover."""

import signal
import socket
import subprocess
from contextlib import ExitStack

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.children import child
from tests.service.test_worker import is_done
from worker.app import make_app
from worker.dispatch import dispatch, look_at_queues
from worker.embedded import redis_binary
from worker.errors import BrokerUnreachableError
from worker.settings import Settings

PASSWORD = "p@ss/#%"


@pytest.fixture
def start_server(tmp_path, wait_until):
    """Start a redis-server with these arguments on a free port; the port and the process."""

    def start(*arguments, password, config=()):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        command = [str(redis_binary()), *config, "--port", str(port), "--bind", "127.0.0.1", *arguments]
        process = stack.enter_context(child(command, cwd=tmp_path, stdout=subprocess.DEVNULL))
        client = redis.Redis(port=port, password=password, retry=Retry(NoBackoff(), 0))
        wait_until(lambda: answers(client))
        return port, process

    with ExitStack() as stack:
        yield start


def answers(client):
    try:
        return client.ping()
    except redis.ConnectionError:
        return False


@pytest.fixture
def deployment(start_server, tmp_path, wait_until):
    """A master, its replica and a Sentinel with a password of its own; the Sentinel's port and the master's process."""
    secret = ["--requirepass", PASSWORD, "--masterauth", PASSWORD, "--save", ""]
    master_port, master = start_server(*secret, password=PASSWORD)
    replica_port, _ = start_server("--replicaof", "127.0.0.1", str(master_port), *secret, password=PASSWORD)
    replica = redis.Redis(port=replica_port, password=PASSWORD)
    wait_until(lambda: replica.info("replication")["master_link_status"] == "up", seconds=60)
    config = tmp_path / "sentinel.conf"
    config.write_text(
        f'sentinel monitor mymaster 127.0.0.1 {master_port} 1\nsentinel auth-pass mymaster "{PASSWORD}"\n'
        "sentinel down-after-milliseconds mymaster 500\nsentinel failover-timeout mymaster 3000\nrequirepass other\n"
    )
    sentinel_port, _ = start_server("--sentinel", password="other", config=[str(config)])
    client = redis.Redis(port=sentinel_port, password="other")
    wait_until(lambda: [one["flags"] for one in client.sentinel_slaves("mymaster")] == ["slave"])
    return sentinel_port, master


def with_broker(settings, port, name="mymaster", password="other"):
    url = f"sentinel://:p%40ss%2F%23%25@127.0.0.1:{port}/2?master_name={name}&sentinel_password={password}"
    return settings.model_copy(update={"broker_url": Settings(broker_url=url).broker_url})


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_a_worker_goes_on_after_a_failover(deployment, settings, ledger, worker, submit, wait_until):
    port, master = deployment
    settings = with_broker(settings, port)
    worker(broker_url=settings.broker_url)
    first = submit("one", "two", "three")
    dispatch(make_app(settings), ledger, settings)
    wait_until(is_done(ledger, first))
    master.send_signal(signal.SIGKILL)
    master.wait()
    second = submit("four", "five")
    wait_until(is_done(ledger, second), seconds=60)


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("wrong", [{"name": "other"}, {"password": "wrongwrong"}])
def test_a_master_that_no_sentinel_names_is_called_that(deployment, settings, wrong):
    with pytest.raises(BrokerUnreachableError, match=r"no Sentinel names such a master; .*master_name") as refused:
        look_at_queues(make_app(with_broker(settings, deployment[0], **wrong)))
    assert "wrongwrong" not in str(refused.value)
