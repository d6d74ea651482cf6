"""Shards that end at the same time are completed together."""

import threading

import pytest

import db.shards
from db.errors import DatabaseUnreachableError
from db.shards import Lease
from worker.closer import Closer
from worker.patience import Patience


@pytest.fixture
def closer():
    return Closer(None, Patience("the database", DatabaseUnreachableError, threading.Event()))


def lease(number):
    return Lease(number, "job", 1, "me", 0)


def test_those_who_come_while_one_is_at_it_share_the_next_transaction(closer, monkeypatch, wait_until):
    groups, first_is_in, rest_are_in = [], threading.Event(), threading.Event()

    def complete(ledger, leases):
        groups.append(sorted(one.shard_id for one in leases))
        if len(groups) == 1:
            first_is_in.set()
            assert rest_are_in.wait(10)
        return {one for one in leases if one.shard_id != 3}

    monkeypatch.setattr(db.shards, "complete", complete)
    done = {}

    def close(number):
        done[number] = closer.close(lease(number))

    threads = [threading.Thread(target=close, args=(number,), daemon=True) for number in range(5)]
    threads[0].start()
    assert first_is_in.wait(10)
    for thread in threads[1:]:
        thread.start()
    wait_until(lambda: len(closer._waiting) == 4)
    rest_are_in.set()
    for thread in threads:
        thread.join(10)
    assert groups == [[0], [1, 2, 3, 4]]
    assert done == {0: True, 1: True, 2: True, 3: False, 4: True}


def test_an_error_comes_to_everybody_who_waits_and_the_next_may_try(closer, monkeypatch):
    def fail(ledger, leases):
        raise ValueError("no")

    monkeypatch.setattr(db.shards, "complete", fail)
    with pytest.raises(ValueError, match="no"):
        closer.close(lease(1))
    monkeypatch.setattr(db.shards, "complete", lambda ledger, leases: set(leases))
    assert closer.close(lease(1))
