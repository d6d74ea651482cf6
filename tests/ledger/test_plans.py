"""What PostgreSQL reads to answer: a shard's own rows, however many the job has."""

import contextlib
import json

import pytest
import sqlalchemy as sa

from db import shards
from db.session import writing

ROWS, SHARD_ROWS = 6000, 20


@pytest.fixture
def half_done(ledger, submit, publish, finish):
    """A job of which half the shards are done, as PostgreSQL's statistics know; the lease of the next shard."""
    submit(rows=ROWS, shard_rows=SHARD_ROWS)
    ids = publish(window=ROWS)
    for shard_id in ids[: len(ids) // 2]:
        lease = shards.claim(ledger, shard_id, "worker", 600)
        finish(lease)
        assert shards.complete(ledger, [lease])
    with writing(ledger) as connection:
        connection.execute(sa.text("ANALYZE"))
    return shards.claim(ledger, ids[len(ids) // 2], "worker", 600)


@contextlib.contextmanager
def selects(ledger):
    """The SELECT statements of a block, with their parameters."""
    found = []

    def listen(connection, cursor, statement, parameters, context, executemany):
        if statement.startswith("SELECT"):
            found.append((statement, parameters))

    sa.event.listen(ledger, "before_cursor_execute", listen)
    yield found
    sa.event.remove(ledger, "before_cursor_execute", listen)


def most_rows(ledger, statement, parameters):
    """The most rows that a part of the statement's plan handles."""
    with writing(ledger) as connection:
        if "FOR UPDATE" in statement:
            return 0
        plan = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters).scalar()
    (top,) = plan if isinstance(plan, list) else json.loads(plan)
    waiting, most = [top["Plan"]], 0
    while waiting:
        node = waiting.pop()
        waiting += node.get("Plans", [])
        most = max(most, node["Actual Rows"] * node["Actual Loops"] + node.get("Rows Removed by Filter", 0))
    return most


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_a_shard_costs_its_own_rows(ledger, half_done, finish):
    with selects(ledger) as asked:
        rows = shards.pending_rows(ledger, half_done)
        finish(half_done, only=rows)
        assert shards.complete(ledger, [half_done])
    assert len(rows) == SHARD_ROWS
    costs = {statement: most_rows(ledger, statement, parameters) for statement, parameters in asked}
    assert any("completions" in statement for statement in costs)
    assert max(costs.values()) <= 10 * SHARD_ROWS, costs
