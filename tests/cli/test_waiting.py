"""What a command says while a backend is away, without processes."""

import pytest

from db.errors import DatabaseUnreachableError
from worker.cli import waiting


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(waiting, "POLL_SECONDS", 0.0)


def answering(*answers):
    """A call that gives these one after the other; True stands for an answer, False for an outage."""
    left = list(answers)

    def call():
        if not left.pop(0):
            raise DatabaseUnreachableError("the database at x does not answer")
        return len(left)

    return call


def test_each_outage_is_said_once_and_so_is_its_end(capsys):
    call = answering(True, False, False, False, True, False, True)
    assert [waiting.insist(call) for _ in range(3)] == [6, 2, 0]
    said = ["Waiting: the database at x does not answer", "The database answers again."]
    assert capsys.readouterr().err.splitlines() == said * 2


def test_an_outage_without_end_is_given_up(monkeypatch):
    monkeypatch.setattr(waiting, "PATIENCE_SECONDS", 0.0)
    with pytest.raises(DatabaseUnreachableError):
        waiting.insist(answering(*[False] * 1000))


def test_a_check_is_made_before_each_call_and_may_give_up():
    checks = []

    def check():
        checks.append(1)
        if len(checks) == 3:
            raise RuntimeError("the worker died")

    with pytest.raises(RuntimeError, match="died"):
        waiting.insist(answering(False, False, False), check)
