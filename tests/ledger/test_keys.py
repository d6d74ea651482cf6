"""Submissions that are repeated with a key."""

import threading

import pytest

from db import jobs
from db.errors import DatasetError, KeyReusedError


def submit(ledger, prompts, spec="b", key="k"):
    rows = [jobs.NewRow(None, {"prompt": prompt}) for prompt in prompts]
    return jobs.submit(ledger, jobs.NewJob(spec={"base": spec}, samples=1, key=key), iter(rows))


def test_the_same_submission_gives_the_first_job(ledger):
    first = submit(ledger, ["a", "b"])
    assert submit(ledger, ["a", "b"]) == first
    assert first.key == "k"
    assert len(jobs.list_jobs(ledger)) == 1
    assert submit(ledger, ["a", "b"], key=None).id != submit(ledger, ["a", "b"], key=None).id


@pytest.mark.parametrize(("prompts", "spec"), [(["a", "c"], "b"), (["a"], "b"), (["a", "b"], "other")])
def test_a_key_is_not_reused_for_something_else(ledger, prompts, spec):
    first = submit(ledger, ["a", "b"])
    with pytest.raises(KeyReusedError, match=first.id):
        submit(ledger, prompts, spec)
    assert len(jobs.list_jobs(ledger)) == 1


def test_a_submission_that_failed_leaves_its_key_free(ledger):
    with pytest.raises(DatasetError):
        submit(ledger, [])
    submit(ledger, ["a"])


def test_of_submissions_at_once_one_makes_the_job(ledger):
    barrier = threading.Barrier(4)
    found = []

    def run():
        barrier.wait()
        found.append(submit(ledger, ["a", "b", "c"]).id)

    threads = [threading.Thread(target=run, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
