"""What is stored of a row, as it comes back."""

import struct

import pytest
import sqlalchemy as sa

from db import shards, tables
from db.session import reading
from db.shards import NewCompletion, RowOutcome

HARD_TEXTS = [
    '{"a": [1, 2]}',
    "NULL",
    "",
    'back\\slash, "quote" \'n {braces}',
    "tab\tline\nend",
    "naïve ☃ 日本",
    "%s :name",
]
THIRD = struct.unpack("f", struct.pack("f", -1 / 3))[0]
LEAST = struct.unpack("f", b"\x01\x00\x00\x00")[0]


@pytest.fixture
def lease(ledger, submit, publish):
    submit(rows=len(HARD_TEXTS), shard_rows=len(HARD_TEXTS))
    return shards.claim(ledger, *publish(), "worker", 60)


def completion(text, values, sample=0, rewards=None):
    return NewCompletion(sample, text, "stop", list(range(len(values))), values, values, rewards or {"a": values}, 3)


def stored(ledger, table):
    with reading(ledger) as connection:
        return connection.execute(sa.select(table).order_by(*table.primary_key.columns)).all()


def test_any_text_comes_back_as_it_was(ledger, lease):
    rows = shards.pending_rows(ledger, lease)
    outcomes = [
        RowOutcome(lease, row.request_id, [completion(text, [-0.5])], None)
        for row, text in zip(rows, HARD_TEXTS, strict=True)
    ]
    assert shards.write(ledger, outcomes).rows == len(rows)
    assert [row.completion for row in stored(ledger, tables.completions)] == HARD_TEXTS


def test_numbers_keep_float32_on_postgresql_and_six_digits_on_sqlite(ledger, lease):
    values = [THIRD, -12345.678, 0.0, -1e-9, LEAST]
    first, second, *_ = shards.pending_rows(ledger, lease)
    outcomes = [
        RowOutcome(lease, first.request_id, [completion("x", values)], None),
        RowOutcome(lease, second.request_id, [completion("", [], rewards={"a": [], "b": []})], None),
    ]
    shards.write(ledger, outcomes)
    full, empty = stored(ledger, tables.completions)
    digits = 6 if ledger.dialect.name == "sqlite" else None
    expected = [round(value, 6) if digits else struct.unpack("f", struct.pack("f", value))[0] for value in values]
    assert full.tokens == [0, 1, 2, 3, 4]
    assert [struct.pack("f", value) for value in full.logprobs] == [struct.pack("f", value) for value in expected]
    assert (empty.tokens, empty.logprobs) == ([], [])
    rewards = stored(ledger, tables.token_rewards)
    assert [(row.arm, len(row.token_values)) for row in rewards] == [("a", 5), ("a", 0), ("b", 0)]
    assert rewards[0].total == sum(values)


def test_what_a_row_lacks_is_null(ledger, lease):
    """A failed row has no numbers; a scored one no log-probabilities of a draw."""
    first, second, *_ = shards.pending_rows(ledger, lease)
    scored = NewCompletion(0, "x", "stop", [1], None, None, {"a": [-0.5]}, 3)
    shards.write(
        ledger,
        [
            RowOutcome(lease, first.request_id, [], ("code", "no\x00thing\ud800")),
            RowOutcome(lease, second.request_id, [scored], None),
        ],
    )
    nothing = sa.select(tables.completions.c.request_id).where(tables.completions.c.logprobs.is_(None))
    with reading(ledger) as connection:
        assert len(connection.execute(nothing).all()) == 2
    failed, kept = stored(ledger, tables.completions)
    assert (failed.tokens, failed.completion, failed.error_message) == (None, None, "no\ufffdthing\ufffd")
    assert (kept.tokens, kept.base_logprobs, kept.error_code) == ([1], None, None)


def test_of_two_outcomes_of_a_row_the_first_stays_whole(ledger, lease):
    row = shards.pending_rows(ledger, lease)[0]
    two = [completion("first", [-1.0], sample) for sample in range(2)]
    three = [completion("second", [-2.0], sample, {"b": [-2.0]}) for sample in range(3)]
    assert shards.write(ledger, [RowOutcome(lease, row.request_id, two, None)]).rows == 1
    written = shards.write(ledger, [RowOutcome(lease, row.request_id, three, None)])
    assert (written.rows, written.duplicates) == (0, 1)
    assert [row.completion for row in stored(ledger, tables.completions)] == ["first"] * 2
    assert [row.arm for row in stored(ledger, tables.token_rewards)] == ["a"] * 2
