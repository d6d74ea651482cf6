"""compose.yaml as docker compose runs it: two workers, a job, and containers that are killed under it."""

import json
import secrets
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

from tests.deployment.containers.daemon import kill_process
from tests.deployment.containers.shell import Failed, Shell
from tests.tiny_models import make_adapter, make_model

ROWS = 240
NEW_TOKENS = 200
WORKERS = 2
UID = "10001"
START_SECONDS, JOB_SECONDS = 400, 600
REGISTRY = """folders = ["/models"]

[models.tiny]
kind = "base"
path = "/models/tiny"
[models.nice]
kind = "arm"
path = "/models/nice"
"""


class Topology:
    """The project of compose.yaml.

    Args:
        shell: runs the commands.
        compose: the program.
        folder: for the models and the registry that the containers see.
    """

    def __init__(self, shell: Shell, compose: Path, folder: Path) -> None:
        self.shell = shell
        self._compose = [compose, "--project-directory", ".", "--progress", "plain"]
        models = folder / "models"
        if not models.is_dir():
            make_model(models / "tiny", seed=1, context=512, sharpness=1.0)
            make_adapter(models / "nice", models / "tiny", seed=2)
            for path in models.rglob("*.safetensors"):
                path.chmod(0o644)  # safetensors writes for the owner alone, and workers are another user
        self.registry = folder / "models.toml"
        self.registry.write_text(REGISTRY)
        self.passwords = {name: secrets.token_hex(16) for name in ("REDIS_PASSWORD", "POSTGRES_PASSWORD")}
        shell.env |= self.passwords | {"GENARM_MODELS": str(models), "GENARM_REGISTRY": str(self.registry)}

    def compose(self, *words: Any, **options: Any) -> str:
        """Output of a command of docker compose."""
        return self.shell.run(*self._compose, *words, **options)

    def result(self, *words: Any, **options: Any) -> "subprocess.CompletedProcess[str]":
        """Exit code and output of a command of docker compose."""
        return self.shell.result(*self._compose, *words, **options)

    def containers(self, service: str) -> list[str]:
        """Ids of the running containers of a service."""
        return self.compose("ps", "--quiet", service).split()

    def start(self) -> None:
        """All services, and two workers that are healthy."""
        self.compose("config", "--quiet")
        self.compose("up", "--no-build", "--pull=never", "--detach", f"--scale=worker={WORKERS}")
        self.shell.wait("both workers are healthy", lambda: self._healthy() == WORKERS, START_SECONDS)

    def _healthy(self) -> int:
        states = [self._inspect(container, "{{.State.Health.Status}}") for container in self.containers("worker")]
        return states.count("healthy")

    def _inspect(self, container: str, what: str) -> str:
        return self.shell.run("docker", "inspect", "--format", what, container).strip()

    def submit(self) -> str:
        """The id of a job whose rows came through the standard input of `docker compose run`."""
        rows = "".join(json.dumps({"id": f"row-{n}", "prompt": f"Say {n}"}) + "\n" for n in range(ROWS))
        words = ("genarm", "job", "submit", "-", "--base", "tiny", "--arm", "nice", "1.0", "--shard-rows", 8)
        more = ("--max-new-tokens", NEW_TOKENS, "--key", "containers")
        out = self.compose("run", "--rm", "-T", "worker", *words, *more, input=rows, stderr=self.shell.log)
        return out.split()[-1]

    def genarm(self, *words: Any) -> str:
        """Standard output of genarm in a worker's container."""
        worker = self.containers("worker")[0]
        return self.shell.run("docker", "exec", worker, "genarm", *words, stderr=self.shell.log)

    def done(self, job_id: str) -> int:
        """Rows of a job that have an outcome."""
        counted = f"SELECT count(*) FROM results WHERE job_id = '{job_id}'"
        return int(self.sql(counted))

    def sql(self, statement: str) -> str:
        """What PostgreSQL answers."""
        (container,) = self.containers("postgres")
        psql = ("psql", "--username=genarm", "--dbname=genarm", "--tuples-only", "--no-align", "--command", statement)
        return self.shell.run("docker", "exec", container, *psql).strip()

    def kill(self, service: str) -> None:
        """Kill a container's process, and wait until Docker has restarted it."""
        container = self.containers(service)[0]
        before = self._inspect(container, "{{.State.StartedAt}}")
        kill_process(self.shell, container)
        state = "{{.State.StartedAt}} {{.State.Running}}"
        self.shell.wait(
            f"{service} runs again",
            lambda: self._inspect(container, state) not in (f"{before} true", f"{before} false"),
            60,
        )

    def check_rows(self, job_id: str) -> None:
        """Every row is there once, in SQL and in the export.

        Raises:
            Failed: otherwise.
        """
        rows = [json.loads(line) for line in self.genarm("job", "export", job_id, "-o", "-").split("\n") if line]
        ids = Counter(row["id"] for row in rows)
        wanted = {f"row-{n}" for n in range(ROWS)}
        if ids.keys() != wanted or set(ids.values()) != {1} or any(row["error"] for row in rows):
            raise Failed(f"{len(rows)} rows of {len(ids)} ids were exported, not {ROWS} of as many")
        stored = self.sql(f"SELECT count(*), count(DISTINCT custom_id) FROM results WHERE job_id = '{job_id}'")
        if stored != f"{ROWS}|{ROWS}":
            raise Failed(f"SQL has {stored} rows and ids, not {ROWS}|{ROWS}")

    def check_rights(self) -> None:
        """Workers are user 10001 on a read-only file system.

        Raises:
            Failed: otherwise.
        """
        worker = self.containers("worker")[0]
        uid = self.shell.run("docker", "exec", worker, "id", "-u").strip()
        if uid != UID:
            raise Failed(f"a worker runs as user {uid}, not {UID}")
        if not self.shell.result("docker", "exec", worker, "touch", "/opt/genarm/x").returncode:
            raise Failed("a worker's file system can be written to")

    def check_logs(self) -> None:
        """Workers log JSON lines alone, without tracebacks and passwords.

        Raises:
            Failed: otherwise; it names the line.
        """
        for worker in self.containers("worker"):
            for line in self.shell.run("docker", "logs", worker).splitlines():
                if any(password in line for password in self.passwords.values()):
                    raise Failed("a worker logs a password")
                if "Traceback" in line or not line.startswith("{"):
                    raise Failed(f"a worker logs what is no line of JSON, or a traceback: {line[:200]}")
