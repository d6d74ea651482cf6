"""Break everything at random while two workers run jobs, then compare the ledger with an undisturbed run.

    python -m tests.faults.chaos --database postgresql --faults 200 --seed 1

The seed decides which fault comes when; the moments within the service still vary from run to run.
"""

import argparse
import json
import os
import random
import secrets
import signal
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import sqlalchemy as sa

import db.jobs
from db.session import Ledger, connect
from tests.faults.servers import Postgres, Redis
from tests.faults.workload import Workload
from worker.embedded import WorkerProcess
from worker.ledger import open_ledger
from worker.settings import Settings
from worker.transport import QUEUE

WORKERS = 2
LEASE_SECONDS = 2.0
PAUSE_SECONDS = (0.2, 0.9)
OUTAGE_SECONDS = (0.0, 1.5)
PRIORITY_QUEUES = [QUEUE, *(f"{QUEUE}\x06\x16{step}" for step in range(1, 10))]
FINISH_SECONDS = 240
Fault = Callable[[], None]


class Stage:
    """Two workers, a Redis and a database, and what can be done to them."""

    def __init__(self, settings: Settings, redis_server: Redis, postgres: Postgres | None, rng: random.Random) -> None:
        self._settings = settings
        self._redis = redis_server
        self._postgres = postgres
        self._random = rng
        self._workers: list[WorkerProcess] = []
        self._later: list[tuple[float, Fault]] = []
        self._captured: deque[tuple[str, bytes]] = deque(maxlen=200)

    def faults(self) -> dict[str, Fault]:
        """What may go wrong."""
        faults = {
            "kill a worker": self.kill_worker,
            "pause a worker": self.pause_worker,
            "stop a worker": self.stop_worker,
            "flush Redis": self.flush_redis,
            "kill Redis": self.kill_redis,
            "double messages": self.double_messages,
            "replay messages": self.replay_messages,
        }
        if self._postgres is not None:
            faults |= {"crash PostgreSQL": self.crash_postgres, "cut connections": self.cut_connections}
        return faults

    def revive(self) -> None:
        """Start what died, and do what is due."""
        now = time.monotonic()
        due = [action for moment, action in self._later if moment <= now]
        self._later = [(moment, action) for moment, action in self._later if moment > now]
        for action in due:
            action()
        self._workers = [worker for worker in self._workers if not self._has_ended(worker)]
        while len(self._workers) < WORKERS:
            self._workers.append(WorkerProcess(self._settings))

    @staticmethod
    def _has_ended(worker: WorkerProcess) -> bool:
        try:
            worker.check()
        except Exception:
            worker.stop()
            return True
        return False

    def heal(self) -> None:
        """End all that is temporary."""
        self._later = [(0.0, action) for _, action in self._later]
        self.revive()

    def close(self) -> None:
        """Stop the workers."""
        for worker in self._workers:
            self._signal(worker.pid, signal.SIGCONT)
            worker.stop(at_once=True)

    def _soon(self, seconds: tuple[float, float], action: Fault) -> None:
        self._later.append((time.monotonic() + self._random.uniform(*seconds), action))

    @staticmethod
    def _signal(pid: int, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, number)

    def kill_worker(self) -> None:
        self._signal(self._random.choice(self._workers).pid, signal.SIGKILL)

    def pause_worker(self) -> None:
        """Stop a worker for longer than its lease; it wakes up and believes that nothing happened."""
        pid = self._random.choice(self._workers).pid
        self._signal(pid, signal.SIGSTOP)
        self._soon((LEASE_SECONDS + 0.5, LEASE_SECONDS + 1.5), lambda: self._signal(pid, signal.SIGCONT))

    def stop_worker(self) -> None:
        self._signal(self._random.choice(self._workers).pid, self._random.choice([signal.SIGTERM, signal.SIGQUIT]))

    def flush_redis(self) -> None:
        if self._redis.is_up:
            self._redis.client().flushall()

    def kill_redis(self) -> None:
        """Redis dies, and comes back empty."""
        if self._redis.is_up:
            self._redis.kill()
            self._soon(OUTAGE_SECONDS, self._redis.start)

    def _waiting_messages(self) -> list[tuple[str, bytes]]:
        client = self._redis.client()
        return [(queue, message) for queue in PRIORITY_QUEUES for message in client.lrange(queue, 0, -1)]

    def double_messages(self) -> None:
        """Every waiting message comes a second time, and once more much later."""
        if not self._redis.is_up:
            return
        messages = self._waiting_messages()
        self._captured.extend(messages)
        for queue, message in messages:
            self._redis.client().lpush(queue, message)

    def replay_messages(self) -> None:
        """Messages of long ago arrive."""
        if self._redis.is_up:
            for queue, message in self._random.sample(list(self._captured), min(20, len(self._captured))):
                self._redis.client().lpush(queue, message)

    def crash_postgres(self) -> None:
        if self._postgres.is_up:
            self._postgres.stop_immediately()
            self._soon(OUTAGE_SECONDS, self._postgres.start)

    def cut_connections(self) -> None:
        if self._postgres.is_up:
            ledger = connect(self._postgres.url)
            with ledger.connect() as connection:
                others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
                connection.execute(sa.text(others))
            ledger.dispose()


def chaos(folder: Path, database: str, rows: int, faults: int, seed: int, say: Callable[[str], None]) -> Counter[str]:
    """Run jobs under so many faults, check every row, and return how often each fault came."""
    say(f"seed {seed}")
    rng = random.Random(seed)
    workload = Workload.make(folder, rows)
    with ExitStack() as stack:
        redis_server = Redis(folder)
        redis_server.start()
        stack.callback(redis_server.kill)
        postgres = None
        if database == "postgresql":
            private = stack.enter_context(tempfile.TemporaryDirectory(prefix="genarm-postgres-"))
            postgres = Postgres(Path(private))
            stack.callback(postgres.close)
        settings = Settings(
            home=folder / "home",
            broker_url=redis_server.url,
            database_url=postgres.url if postgres else f"sqlite:///{folder / 'ledger.db'}",
            allow_any_model=True,
            dtype="float32",
            worker_threads=4,
            lease_seconds=LEASE_SECONDS,
            heartbeat_seconds=0.3,
            rescue_seconds=0.3,
            grace_seconds=0.5,
        )
        ledger = _empty_ledger(settings)
        stack.callback(ledger.dispose)
        stage = Stage(settings, redis_server, postgres, rng)
        stack.callback(stage.close)
        stage.revive()
        jobs, done = _break_things(stage, ledger, workload, faults, rng, say)
        stage.heal()
        _wait_for_all(stage, ledger, jobs)
        for job_id in jobs:
            workload.check(ledger, job_id)
    say(f"{len(jobs)} jobs of {rows} rows are whole after {done.total()} faults: {dict(done)}")
    return done


def _empty_ledger(settings: Settings) -> Ledger:
    from db.migrations import runner

    ledger = connect(settings.effective_database_url)
    runner.upgrade(ledger)
    ledger.dispose()
    return open_ledger(settings)


def _break_things(
    stage: Stage, ledger: Ledger, workload: Workload, faults: int, rng: random.Random, say: Callable[[str], None]
) -> tuple[list[str], Counter[str]]:
    jobs: list[str] = [workload.submit(ledger)]
    done: Counter[str] = Counter()
    kinds = stage.faults()
    while done.total() < faults:
        time.sleep(rng.uniform(*PAUSE_SECONDS))
        name = rng.choice(list(kinds))
        kinds[name]()
        done[name] += 1
        stage.revive()
        if _has_ended(ledger, jobs[-1]):
            jobs.append(workload.submit(ledger))
        if done.total() % 20 == 0:
            say(f"{done.total()} faults, {len(jobs)} jobs")
    return jobs, done


def _has_ended(ledger: Ledger, job_id: str) -> bool:
    try:
        return db.jobs.find(ledger, job_id).status.is_final
    except db.errors.DatabaseUnreachableError:
        return False


def _wait_for_all(stage: Stage, ledger: Ledger, jobs: list[str]) -> None:
    deadline = time.monotonic() + FINISH_SECONDS
    while not all(_has_ended(ledger, job_id) for job_id in jobs):
        assert time.monotonic() < deadline, [db.jobs.progress(ledger, job_id) for job_id in jobs]
        stage.revive()
        time.sleep(0.1)


def main() -> None:
    """Run once and print what happened."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", choices=["postgresql", "sqlite"], required=True)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31))
    parser.add_argument("--folder", type=Path, help="Keep everything here; default: a temporary folder.")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        done = chaos(
            folder, options.database, options.rows, options.faults, options.seed, lambda t: print(t, file=sys.stderr)
        )
    print(json.dumps({"database": options.database, "seed": options.seed, "faults": done.total(),
                      "seconds": round(time.monotonic() - started)}))  # fmt: skip


if __name__ == "__main__":
    main()
