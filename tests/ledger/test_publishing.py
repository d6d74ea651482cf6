"""What goes into the queue, and in which order, on both databases."""

from db import jobs, publishing, shards


def jobs_of(tickets, *known):
    names = {job.id: name for name, job in zip("abcdefgh", known, strict=False)}
    return "".join(names[ticket.job_id] for ticket in tickets)


def test_a_window_bounds_what_waits_in_the_queue(ledger, submit, publish):
    submit(rows=10, shard_rows=1)
    first = publish(window=4)
    assert len(first) == 4
    assert publish(window=4) == []
    for shard_id in first[:3]:
        assert shards.claim(ledger, shard_id, "worker", 60)
    assert len(publish(window=4)) == 3


def test_jobs_take_turns_and_the_more_urgent_goes_first(ledger, submit):
    low, high, other = submit(rows=4, priority=2), submit(rows=2, priority=9), submit(rows=4, priority=2)
    tickets = publishing.due(ledger, window=10, republish_after_seconds=60)
    assert jobs_of(tickets, low, high, other) == "bacac"


def test_a_small_job_behind_a_large_one_has_the_next_turns(ledger, submit, publish):
    large = submit(rows=40, shard_rows=1)
    for shard_id in publish(window=8)[:6]:
        shards.claim(ledger, shard_id, "worker", 60)
    small = submit(rows=3, shard_rows=1)
    tickets = publishing.due(ledger, window=8, republish_after_seconds=60)
    assert jobs_of(tickets, large, small) == "bbb" + "a" * 6


def test_the_queue_is_bounded_over_all_jobs_of_a_priority(ledger, submit, monkeypatch):
    monkeypatch.setattr(publishing, "MOST_PUBLISHED", 6)
    first, second = submit(rows=9, shard_rows=1), submit(rows=9, shard_rows=1)
    tickets = publishing.due(ledger, window=5, republish_after_seconds=60)
    assert jobs_of(tickets, first, second) == "ababab"
    third, urgent = submit(rows=1), submit(rows=1, priority=7)
    tickets = publishing.due(ledger, window=5, republish_after_seconds=60)
    assert jobs_of(tickets, first, second, third, urgent) == "d"
    shards.claim(ledger, publishing.due(ledger, window=5, republish_after_seconds=-1)[0].shard_id, "worker", 60)
    tickets = publishing.due(ledger, window=5, republish_after_seconds=60)
    assert jobs_of(tickets, first, second, third, urgent) == "c"


def test_more_jobs_than_a_pass_looks_at_all_get_their_turn(ledger, submit, publish, monkeypatch):
    monkeypatch.setattr(publishing, "JOBS_AT_ONCE", 2)
    for _ in range(5):
        submit(rows=2, shard_rows=1)
    published = [shard_id for _ in range(5) for shard_id in publish(window=1)]
    assert len(published) == len(set(published)) == 5


def test_a_job_beyond_those_of_a_pass_comes_before_one_that_has_much(ledger, submit, monkeypatch):
    monkeypatch.setattr(publishing, "JOBS_AT_ONCE", 1)
    monkeypatch.setattr(publishing, "MOST_PUBLISHED", 2)
    old, new = submit(rows=9, shard_rows=1), submit(rows=9, shard_rows=1)
    first = publishing.due(ledger, window=3, republish_after_seconds=60)
    assert jobs_of(first, old, new) == "aa"
    shards.claim(ledger, first[0].shard_id, "worker", 60)
    assert jobs_of(publishing.due(ledger, window=3, republish_after_seconds=60), old, new) == "b"


def test_a_cancelled_job_is_not_published(ledger, submit, publish):
    job = submit(rows=2, shard_rows=1)
    lease = shards.claim(ledger, publish(window=1)[0], "worker", 60)
    jobs.cancel(ledger, job.id)
    assert publish() == []
    shards.release(ledger, lease)
    assert publish() == []


def test_a_message_that_got_lost_is_sent_again(ledger, submit, publish):
    submit(rows=2)
    (shard_id,) = publish()
    assert publish(after=60) == []
    assert publish(after=-1) == [shard_id]
    publishing.unpublish(ledger, [shard_id])
    assert publish(after=60) == [shard_id]
