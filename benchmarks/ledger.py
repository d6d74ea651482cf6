"""What the service costs beside the bare engine and the bare database; one JSON object per workload.

    python -m benchmarks.ledger                     all but `engine`, on a PostgreSQL and a Redis started for it
    python -m benchmarks.ledger rows fairness       some of them
    python -m benchmarks.ledger rows --database sqlite
    python -m benchmarks.ledger engine --base MODEL --arm examples/arms/positive

`ratio` is ours / peer; `bar` says what it must be. Machines are shared and noisy: the two sides of a ratio are measured
one after the other in the same run.
"""

import argparse
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import psycopg
import sqlalchemy as sa

import db.jobs
from db.datasets import DatasetSource, open_dataset
from db.jobs import JobProgress, NewJob, NewRow
from db.migrations import runner
from db.session import Ledger, connect
from tests.faults.servers import Postgres, Redis
from worker.embedded import WORKER_COMMAND, WorkerProcess
from worker.settings import Settings
from worker.submission import announce

INSTANT_WORKER = (sys.executable, "-m", "benchmarks.instant_worker")
HOLD = "hold"
MIB = 2**20
Result = dict[str, Any]


@dataclass
class Bench:
    """A PostgreSQL and a Redis with an empty ledger."""

    settings: Settings
    ledger: Ledger
    redis: Redis
    options: argparse.Namespace

    @contextmanager
    def workers(
        self, count: int, command: tuple[str, ...] = INSTANT_WORKER, **changes: Any
    ) -> Iterator[list[WorkerProcess]]:
        """So many workers, ready."""
        settings = self.settings.model_copy(update=changes)
        workers = [WorkerProcess(settings, command) for _ in range(count)]
        try:
            for worker in workers:
                worker.wait_until_ready()
            yield workers
        finally:
            for worker in workers:
                worker.stop(at_once=True)

    def submit(self, rows: int, spec: dict[str, Any] | None = None, prompt: str = "Say something.") -> str:
        """Store and announce a job."""
        new = (NewRow(None, {"id": index, "prompt": prompt}) for index in range(rows))
        job = NewJob(spec=spec or _instant(tokens=32), samples=1, shard_rows=self.settings.shard_rows)
        job_id = db.jobs.submit(self.ledger, job, new).id
        announce(self.ledger, self.settings)
        return job_id

    def progress(self, job_id: str) -> JobProgress:
        """How far a job is."""
        return db.jobs.progress(self.ledger, job_id)

    def wait(self, condition: Callable[[], bool], seconds: float = 600, every: float = 0.02) -> None:
        """Poll until it is so."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError("not so in time")
            time.sleep(every)

    def has_ended(self, *job_ids: str) -> bool:
        """True when all of them have, whole or cancelled; a job that failed measures nothing."""
        jobs = [db.jobs.find(self.ledger, job_id) for job_id in job_ids]
        assert not any(job.error_code for job in jobs), jobs
        return all(job.status.is_final for job in jobs)

    def wait_for_all_rows(self, job_id: str, rows: int, every: float = 0.1) -> None:
        """Wait until a job has ended, with every row completed."""
        self.wait(lambda: self.has_ended(job_id), seconds=36_000, every=every)
        progress = self.progress(job_id)
        assert progress.completed_rows == rows, progress


def _instant(tokens: int) -> dict[str, Any]:
    """The spec of a job for the instant engine."""
    return {"base": "instant", "sampling": {"max_new_tokens": tokens}}


def rows_per_second(bench: Bench) -> Iterator[Result]:
    """Rows through submit, Redis, Celery, PostgreSQL and back, with an engine that answers at once."""
    rows, least = 20_000, 1500.0
    for count in (1, 2):
        with bench.workers(count):
            started = time.perf_counter()
            job_id = bench.submit(rows)
            bench.wait_for_all_rows(job_id, rows)
            speed = rows / (time.perf_counter() - started)
        yield _result(f"rows per second, {count} worker(s), instant engine", speed, least, "ratio >= 1")


def memory(bench: Bench) -> Iterator[Result]:
    """What a worker holds at the end of a long job, beside what it held after a quarter."""
    rows = 40_000
    with bench.workers(1) as (worker,):
        job_id = bench.submit(rows)
        bench.wait(lambda: bench.progress(job_id).completed_rows >= rows // 4, every=0.1)
        early = _resident_mib(worker.pid)
        bench.wait_for_all_rows(job_id, rows)
        late = _resident_mib(worker.pid)
    yield _result(f"MiB of a worker after {rows:,} rows, beside a quarter of them", late, early, "ratio <= 1.1")


def _resident_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024


def fairness(bench: Bench) -> Iterator[Result]:
    """Twenty small jobs behind a large one: how much of it is done when the last of them is."""
    large_rows, most = 100_000, 0.05
    with bench.workers(2):
        large = bench.submit(large_rows)
        bench.wait(lambda: bench.progress(large).completed_rows > 0)
        small = [bench.submit(50) for _ in range(20)]
        bench.wait(lambda: bench.has_ended(*small))
        share = bench.progress(large).completed_rows / large_rows
        db.jobs.cancel(bench.ledger, large)
        bench.wait(lambda: bench.has_ended(large))
    yield _result("share of 100,000 rows done before 20 jobs of 50 behind them", share, most, "ratio <= 1")


def recovery(bench: Bench) -> Iterator[Result]:
    """From SIGKILL of one of two workers until its rows run in the other."""
    lease = bench.settings.lease_seconds
    with bench.workers(1) as (victim,):
        job_id = bench.submit(4 * bench.settings.shard_rows, prompt=HOLD)
        bench.wait(lambda: bench.progress(job_id).leased_shards == 4)
        with bench.workers(1):
            os.kill(victim.pid, signal.SIGKILL)
            started = time.perf_counter()
            bench.wait(lambda: _leased_again(bench, job_id) >= 4, every=0.1)
            seconds = time.perf_counter() - started
            _cancel(bench, job_id)
    yield _result("seconds from SIGKILL until its rows run again", seconds, lease + 5, "ratio <= 1")


def _leased_again(bench: Bench, job_id: str) -> int:
    again = sa.text("SELECT count(*) FROM shards WHERE job_id = :job_id AND state = 'leased' AND attempts > 0")
    with bench.ledger.connect() as connection:
        return int(connection.execute(again, {"job_id": job_id}).scalar_one())


def shutdown(bench: Bench) -> Iterator[Result]:
    """From SIGTERM until the worker is gone, and from then until the other has its rows."""
    grace = 3.0
    with bench.workers(1, grace_seconds=grace) as (leaving,):
        job_id = bench.submit(4 * bench.settings.shard_rows, prompt=HOLD)
        bench.wait(lambda: bench.progress(job_id).leased_shards == 4)
        with bench.workers(1):
            started = time.perf_counter()
            status = leaving.stop()
            exited = time.perf_counter()
            bench.wait(lambda: bench.progress(job_id).leased_shards == 4)
            handed_over = time.perf_counter()
            _cancel(bench, job_id)
    assert status == 0, status
    yield _result("seconds from SIGTERM to exit, rows that never end", exited - started, grace + 2, "ratio <= 1")
    yield _result("seconds from exit until the other worker has the rows", handed_over - exited, 5.0, "ratio <= 1")


def cancel(bench: Bench) -> Iterator[Result]:
    """From the cancel of a job until no worker runs its rows."""
    with bench.workers(1):
        job_id = bench.submit(4 * bench.settings.shard_rows, prompt=HOLD)
        bench.wait(lambda: bench.progress(job_id).leased_shards == 4)
        started = time.perf_counter()
        db.jobs.cancel(bench.ledger, job_id)
        bench.wait(lambda: bench.has_ended(job_id))
        seconds = time.perf_counter() - started
    yield _result("seconds from cancel until no row is in work", seconds, 2.0, "ratio <= 1")


def _cancel(bench: Bench, job_id: str) -> None:
    db.jobs.cancel(bench.ledger, job_id)
    bench.wait(lambda: bench.has_ended(job_id))


def million(bench: Bench) -> Iterator[Result]:
    """Submit of 1,000,000 rows beside a bare COPY of them; the first row; memory of the submit, of Redis to the end."""
    rows = bench.options.rows or 1_000_000
    dataset = bench.settings.home / "rows.jsonl"
    with dataset.open("w") as file:
        for index in range(rows):
            file.write(json.dumps({"id": f"row-{index}", "prompt": f"Say something about the number {index}."}) + "\n")
    bare = _bare_copy(bench, dataset)
    with bench.workers(2):
        started = time.perf_counter()
        child = subprocess.run(
            [sys.executable, "-m", "benchmarks.ledger", "--submit-only", str(dataset)],
            env=bench.settings.environment(), stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
        told = json.loads(child.stdout)
        bench.wait(lambda: bench.progress(told["job_id"]).completed_rows > 0, every=0.05)
        first_row = time.perf_counter() - started - told["seconds"]
        bench.wait_for_all_rows(told["job_id"], rows, every=1.0)
        seconds = time.perf_counter() - started
        peak = bench.redis.client().info("memory")["used_memory_peak"]
    yield _result(f"seconds to submit {rows:,} rows, beside a bare COPY", told["seconds"], bare, "ratio <= 5")
    yield _result("MiB of the submitting process at most", told["peak_bytes"] / MIB, 400.0, "ratio <= 1")
    yield _result(f"MiB of Redis at most, to the last row ({seconds:.0f} s)", peak / MIB, 8.0, "ratio <= 1")
    yield _result("seconds from the end of the submit to the first row in the ledger", first_row, 10.0, "ratio <= 1")


def _bare_copy(bench: Bench, dataset: Path) -> float:
    """COPY of the same values into a table like `requests`, from text that is ready."""
    with psycopg.connect(bench.options.dsn, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS bare")
        connection.execute("CREATE TABLE bare (LIKE requests INCLUDING ALL)")
        connection.execute("CREATE SEQUENCE IF NOT EXISTS bare_id")
        connection.execute("ALTER TABLE bare ALTER COLUMN id SET DEFAULT nextval('bare_id')")
        ready = dataset.with_suffix(".copy")
        with dataset.open() as lines, ready.open("w") as file:
            for index, line in enumerate(lines):
                text = line.rstrip("\n").replace("\\", "\\\\")
                file.write(f"job-0000000000000\t{index}\trow-{index}\t{text}\n")
        started = time.perf_counter()
        copying = connection.cursor().copy("COPY bare (job_id, row_index, custom_id, row) FROM STDIN")
        with copying as copy, ready.open("rb") as file:
            while chunk := file.read(MIB):
                copy.write(chunk)
        seconds = time.perf_counter() - started
        connection.execute("DROP TABLE bare")
        ready.unlink()
    return seconds


def submit_only(dataset: str) -> None:
    """In a process of its own: submit a file, and print what it took."""
    settings = Settings()
    ledger = connect(settings.effective_database_url)
    started = time.perf_counter()
    job = NewJob(spec=_instant(tokens=1), samples=1, shard_rows=settings.shard_rows)
    job_id = db.jobs.submit(ledger, job, open_dataset(DatasetSource(str(dataset)))).id
    announce(ledger, settings)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"job_id": job_id, "seconds": seconds, "peak_bytes": peak}))


def engine(bench: Bench) -> Iterator[Result]:
    """Tokens per second of the whole service beside those of the engine alone, the same rows and models."""
    options = bench.options
    rows = options.rows or 2000
    spec = {
        "base": options.base,
        "arms": [{"name": "arm", "ref": options.arm, "weight": 1.0}] if options.arm else [],
        "sampling": {"max_new_tokens": options.tokens, "ignore_eos": True},
    }
    bare, bare_batch = _bare_engine(bench, spec, rows)
    port = _free_port()
    with bench.workers(1, WORKER_COMMAND, metrics_port=port):
        warm = bench.submit(1, spec)
        bench.wait_for_all_rows(warm, 1)
        tokens_before, steps_before = _engine_counters(port)
        started = time.time()
        job_id = bench.submit(rows, spec)
        bench.wait_for_all_rows(job_id, rows, every=1.0)
        done = bench.progress(job_id)
        assert done.job.finished_at is not None
        ours = done.generated_tokens / (done.job.finished_at.timestamp() - started)
        tokens, steps = _engine_counters(port)
    batch = (tokens - tokens_before) / (steps - steps_before)
    yield _result(f"tokens per second of the service, {rows} rows", ours, bare, "ratio >= 0.95")
    yield _result(
        "sequences per step of the service's engine", batch, bare_batch, "none: tells idle places from slow steps"
    )


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _engine_counters(port: int) -> tuple[float, float]:
    """Tokens drawn and steps done by a worker's engine so far."""
    with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    found = dict(line.split(" ", 1) for line in lines if line.startswith("genarm_engine_"))
    return float(found["genarm_engine_generated_tokens_total"]), float(found["genarm_engine_steps_total"])


def _bare_engine(bench: Bench, spec: dict[str, Any], rows: int) -> tuple[float, float]:
    """Tokens per second, and sequences per step."""
    from models.spec import GenerationSpec, PromptRow
    from worker.engines import make_engine

    parsed = GenerationSpec.parse(spec)
    engine = make_engine(bench.settings)
    engine.start()
    guided = engine.load(parsed)
    prompts = [PromptRow.parse({"id": index, "prompt": "Say something."}, index, parsed) for index in range(rows)]
    engine.submit(guided, prompts[0]).result()
    steps = engine.stats().steps
    started = time.perf_counter()
    futures = [engine.submit(guided, prompt) for prompt in prompts]
    tokens = sum(len(completion.tokens) for future in futures for completion in future.result())
    seconds = time.perf_counter() - started
    steps = engine.stats().steps - steps
    engine.stop()
    return tokens / seconds, tokens / steps


def _result(workload: str, ours: float, peer: float, bar: str) -> Result:
    return {
        "workload": workload,
        "ours": round(ours, 3),
        "peer": round(peer, 3),
        "ratio": round(ours / peer, 3),
        "bar": bar,
    }


WORKLOADS = {
    "rows": rows_per_second,
    "memory": memory,
    "fairness": fairness,
    "cancel": cancel,
    "shutdown": shutdown,
    "recovery": recovery,
    "million": million,
    "engine": engine,
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=", ".join(WORKLOADS))
    parser.add_argument("--base", help="For `engine`.")
    parser.add_argument("--arm", help="For `engine`.")
    parser.add_argument("--tokens", type=int, default=32, help="For `engine`.")
    parser.add_argument("--rows", type=int, help="For `engine` (2,000) and `million` (1,000,000).")
    parser.add_argument("--database", choices=["postgresql", "sqlite"], default="postgresql")
    parser.add_argument("--submit-only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.submit_only:
        submit_only(options.submit_only)
        return
    if unknown := set(options.workloads) - set(WORKLOADS):
        parser.error(f"unknown workloads: {', '.join(sorted(unknown))}")
    lacking = set() if options.base else {"engine"}
    if options.database == "sqlite":
        lacking.add("million")  # its peer is COPY
    chosen = options.workloads or [name for name in WORKLOADS if name not in lacking]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the servers are stopped in any case
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        redis = Redis(folder)
        redis.start()
        stack.callback(redis.kill)
        options.dsn = f"sqlite:///{folder / 'ledger.db'}"
        if options.database == "postgresql":
            postgres = Postgres(folder / "postgres")
            stack.callback(postgres.close)
            options.dsn = postgres.url
        settings = Settings(home=folder / "home", broker_url=redis.url, database_url=options.dsn, allow_any_model=True)
        settings.home.mkdir()
        ledger = connect(options.dsn)
        stack.callback(ledger.dispose)
        runner.upgrade(ledger)
        for name in chosen:
            for result in WORKLOADS[name](Bench(settings, ledger, redis, options)):
                print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
