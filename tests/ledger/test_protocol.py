"""The lease protocol against a model of it: workers that crash, sleep, wake up late, and messages in any order."""

import shutil
import tempfile
from itertools import count, pairwise

import hypothesis.strategies as st
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from db import jobs, publishing, rescue, session, shards, submission
from db.clock import from_now
from db.migrations import runner
from db.rescue import MOST_LONE_ATTEMPTS
from db.shards import NewCompletion, RowOutcome
from db.tables import ShardState, completions, requests
from db.tables import shards as shards_table

SAMPLES = 2
UNFINISHED = {ShardState.OPEN, ShardState.PUBLISHED, ShardState.LEASED}


class Protocol(RuleBasedStateMachine):
    """The ledger is real; workers are no more than the leases that they believe in, for as long as they like."""

    template = None
    messages = Bundle("messages")
    leases = Bundle("leases")

    @initialize(row_counts=st.lists(st.integers(1, 9), min_size=1, max_size=3), shard_rows=st.integers(1, 5))
    def submit(self, row_counts, shard_rows):
        self.folder = tempfile.TemporaryDirectory()
        copy = shutil.copy(self.template, self.folder.name)
        self.ledger = session.connect(f"sqlite:///{copy}")
        self.valid = {}
        self.written = {}
        self.lone_deaths = {}
        self.cancelled = set()
        self.jobs = []
        for row_count in row_counts:
            rows = [jobs.NewRow(None, {"prompt": str(index)}) for index in range(row_count)]
            job = jobs.NewJob(spec={}, samples=SAMPLES, shard_rows=shard_rows)
            self.jobs.append(jobs.submit(self.ledger, job, rows))

    def teardown(self):
        if not hasattr(self, "ledger"):
            return
        try:
            self.run_to_the_end()
            self.invariants_hold()
        finally:
            self.ledger.dispose()
            self.folder.cleanup()

    @rule(target=messages, window=st.integers(1, 3), is_late=st.booleans())
    def dispatch(self, window, is_late):
        due = publishing.due(self.ledger, window=window, republish_after_seconds=-1 if is_late else 60)
        return multiple(*(ticket.shard_id for ticket in due))

    @rule(message=consumes(messages))
    def lose_a_message(self, message):
        pass

    @rule(target=leases, message=messages, worker=st.sampled_from(["one", "two", "three"]))
    def deliver(self, message, worker):
        """A message may come any number of times, to any worker, at any time."""
        return self.claim(message, worker) or multiple()

    def claim(self, message, worker):
        lease = shards.claim(self.ledger, message, worker, 60)
        if lease is None:
            return None
        assert message not in self.valid, "two workers have the shard"
        self.valid[message] = lease
        if lease.is_suspect:
            assert shards.begin_alone(self.ledger, lease)
        return lease

    @rule(target=leases, worker=st.sampled_from(["one", "two", "three"]))
    def dispatch_and_deliver(self, worker):
        """All at once, as mostly happens."""
        due = publishing.due(self.ledger, window=3, republish_after_seconds=-1)
        leases = [self.claim(ticket.shard_id, worker) for ticket in due]
        return multiple(*(lease for lease in leases if lease is not None))

    @rule(lease=leases)
    def die_and_be_rescued(self, lease):
        """The worker's lease stays in the bundle: a worker that was only asleep wakes up with it."""
        self.fall_silent(lease)
        self.rescue()

    def is_valid(self, lease):
        return self.valid.get(lease.shard_id) == lease

    @rule(lease=leases, first=st.integers(0, 3), count=st.integers(1, 4), fails=st.booleans())
    def write(self, lease, first, count, fails):
        """A worker writes rows that it once read, whether its lease holds or not."""
        rows = self.rows_in(lease.shard_id)[first:][:count]
        outcomes = [self.outcome(lease, request_id, fails) for request_id in rows]
        if not outcomes:
            return
        written = shards.write(self.ledger, outcomes)
        assert written.lost == (set() if self.is_valid(lease) else {lease})
        if self.is_valid(lease):
            for outcome in outcomes:
                self.written.setdefault(outcome.request_id, (lease.token, fails))

    def outcome(self, lease, request_id, fails):
        if fails:
            return RowOutcome(lease, request_id, [], ("code", f"by {lease.token}"))
        text = f"by {lease.token}"
        samples = [NewCompletion(sample, text, "stop", [1], [0.0], [0.0], {}, 1) for sample in range(SAMPLES)]
        return RowOutcome(lease, request_id, samples, None)

    @rule(several=st.lists(leases, min_size=1, max_size=4))
    def heartbeat(self, several):
        beat = shards.heartbeat(self.ledger, several, 60)
        assert beat.lost == {lease for lease in several if not self.is_valid(lease)}
        assert beat.cancelled == {lease for lease in {*several} - beat.lost if lease.job_id in self.cancelled}

    @rule(several=st.lists(leases, min_size=1, max_size=4))
    def complete(self, several):
        done = {lease for lease in several if self.is_valid(lease) and self.has_all_rows(lease)}
        assert shards.complete(self.ledger, several) == done
        for lease in done:
            del self.valid[lease.shard_id]

    def has_all_rows(self, lease):
        return all(request_id in self.written for request_id in self.rows_in(lease.shard_id))

    @rule(lease=consumes(leases))
    def release(self, lease):
        shards.release(self.ledger, lease)
        if self.is_valid(lease):
            del self.valid[lease.shard_id]
            self.forgive(lease)

    def forgive(self, lease):
        for request_id in self.rows_in(lease.shard_id):
            self.lone_deaths.pop(request_id, None)

    @rule(lease=leases)
    def fall_silent(self, lease):
        """The lease runs out; nobody has noticed yet."""
        if self.is_valid(lease):
            self.expire(lease.shard_id)

    def expire(self, shard_id):
        with session.writing(self.ledger) as connection:
            gone = sa.update(shards_table).where(shards_table.c.id == shard_id)
            connection.execute(gone.values(lease_expires_at=from_now(-1)))

    @rule()
    def rescue(self):
        expired = self.expired()
        for shard_id in expired:
            self.count_lone_death(self.valid.pop(shard_id))
        assert rescue.rescue(self.ledger) == len(expired)

    def expired(self):
        query = sa.select(shards_table.c.id).where(
            shards_table.c.state == ShardState.LEASED, shards_table.c.lease_expires_at < from_now(0)
        )
        with session.reading(self.ledger) as connection:
            return list(connection.execute(query).scalars())

    def count_lone_death(self, lease):
        if not lease.is_suspect or lease.job_id in self.cancelled:
            return
        (request_id,) = [row for row in self.rows_in(lease.shard_id) if row not in self.written] or [None]
        if request_id is None:
            return
        self.lone_deaths[request_id] = self.lone_deaths.get(request_id, 0) + 1
        if self.lone_deaths[request_id] == MOST_LONE_ATTEMPTS:
            self.written[request_id] = (None, True)

    @rule(which=st.integers(0, 2))
    def cancel(self, which):
        job = self.jobs[which % len(self.jobs)]
        if not jobs.find(self.ledger, job.id).status.is_final:
            jobs.cancel(self.ledger, job.id)
            self.cancelled.add(job.id)

    @rule(which=st.integers(0, 2))
    def retry(self, which):
        job = self.jobs[which % len(self.jobs)]
        if not jobs.find(self.ledger, job.id).status.is_final:
            return
        for request_id in self.rows_of_job(job.id):
            if request_id in self.written and self.written[request_id][1]:
                del self.written[request_id]
            self.lone_deaths.pop(request_id, None)
        left = sum(request_id not in self.written for request_id in self.rows_of_job(job.id))
        assert jobs.retry_failed(self.ledger, job.id) == left
        if left:
            self.cancelled.discard(job.id)

    def select(self, query):
        with session.reading(self.ledger) as connection:
            return list(connection.execute(query).tuples())

    def rows_in(self, shard_id):
        query = sa.select(requests.c.id).where(shards.rows_of(shard_id)).order_by(requests.c.row_index)
        return [request_id for (request_id,) in self.select(query)]

    def rows_of_job(self, job_id):
        return [row for (row,) in self.select(sa.select(requests.c.id).where(requests.c.job_id == job_id))]

    @invariant()
    def invariants_hold(self):
        if not hasattr(self, "ledger"):
            return
        self.what_was_written_stays()
        for job in self.jobs:
            self.shards_of_a_job_agree(job)

    def what_was_written_stays(self):
        found = {}
        columns = (completions.c.request_id, completions.c.sample, completions.c.completion, completions.c.error_code)
        for request_id, sample, text, error in self.select(sa.select(*columns)):
            found.setdefault(request_id, []).append((sample, text, error is not None))
        assert found.keys() == self.written.keys()
        for request_id, (token, fails) in self.written.items():
            text = None if fails else f"by {token}"
            assert sorted(found[request_id]) == [(sample, text, fails) for sample in range(1 if fails else SAMPLES)]

    def shards_of_a_job_agree(self, job):
        columns = shards_table.c
        rows = self.select(
            sa.select(
                columns.id, columns.first_row, columns.row_count, columns.state, columns.completed_rows,
                columns.failed_rows,
            ).where(columns.job_id == job.id).order_by(columns.first_row)
        )  # fmt: skip
        assert rows[0][1] == 0
        assert rows[-1][1] + rows[-1][2] == job.total_rows
        assert all(one[1] + one[2] == next_one[1] and one[2] > 0 for one, next_one in pairwise(rows))
        for shard_id, _, size, state, completed, failed in rows:
            outcomes = [self.written[row] for row in self.rows_in(shard_id) if row in self.written]
            assert (completed, failed) == (sum(not fails for _, fails in outcomes), sum(fails for _, fails in outcomes))
            assert (state == ShardState.LEASED) == (shard_id in self.valid)
            if state == ShardState.DONE:
                assert len(outcomes) == size
        status = jobs.find(self.ledger, job.id).status
        assert status.is_final == (not UNFINISHED & {row[3] for row in rows})
        assert (status == "cancelled") <= (job.id in self.cancelled)

    def run_to_the_end(self):
        """All workers die; from here on one that does not makes every job end."""
        for shard_id in list(self.valid):
            self.expire(shard_id)
        self.rescue()
        while due := publishing.due(self.ledger, window=100, republish_after_seconds=-1):
            for ticket in due:
                lease = self.valid[ticket.shard_id] = shards.claim(self.ledger, ticket.shard_id, "last", 60)
                self.write(lease, 0, 100, False)
                self.complete([lease])
        for job in self.jobs:
            progress = jobs.progress(self.ledger, job.id)
            assert progress.job.status.is_final
            assert progress.pending_rows == 0 or job.id in self.cancelled


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """An empty ledger to copy."""
    path = tmp_path_factory.mktemp("protocol") / "template.db"
    ledger = session.connect(f"sqlite:///{path}")
    runner.upgrade(ledger)
    with ledger.connect() as connection:
        connection.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    ledger.dispose()
    return path


def test_the_protocol_keeps_its_promises_in_any_order(template, monkeypatch):
    numbers = count()
    monkeypatch.setattr(submission, "new_job_id", lambda: f"job-{next(numbers):09}")  # ids in order, for replays
    Protocol.template = template
    quick = settings(
        max_examples=40, stateful_step_count=40, deadline=None, derandomize=True,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate],
    )  # fmt: skip
    run_state_machine_as_test(Protocol, settings=quick)
