"""Commands that go on through an outage: they say once that they wait, and once that they go on."""

import time
from collections.abc import Callable
from typing import TypeVar

from db.errors import DatabaseUnreachableError
from db.session import Ledger
from worker.cli import console
from worker.errors import BrokerUnreachableError
from worker.settings import Settings

T = TypeVar("T")
POLL_SECONDS = 0.25
PATIENCE_SECONDS = 300.0
LOOK_SECONDS = 2.0
"""So often a command looks whether Redis answers."""


class Waiting:
    """What was said of one backend, so that each outage is said once."""

    def __init__(self, backend: str) -> None:
        self._backend = backend
        self._since: float | None = None

    def note(self, error: Exception | None) -> float:
        """Say what is new: that the backend is away, or with None that it answers. Returns the seconds it was away."""
        if error is not None and self._since is None:
            self._since = time.monotonic()
            console.note(f"Waiting: {error}")
        if self._since is None:
            return 0.0
        seconds = time.monotonic() - self._since
        if error is None:
            self._since = None
            console.note(f"{self._backend} answers again.")
        return seconds


def insist(call: Callable[[], T], check: Callable[[], None] = lambda: None) -> T:
    """Call until the database answers.

    Args:
        call: may be repeated.
        check: called before each; may raise to give up.

    Raises:
        DatabaseUnreachableError: it has been away for PATIENCE_SECONDS.
    """
    waiting = Waiting("The database")
    while True:
        check()
        try:
            result = call()
        except DatabaseUnreachableError as error:
            if waiting.note(error) > PATIENCE_SECONDS:
                raise
            time.sleep(POLL_SECONDS)
        else:
            waiting.note(None)
            return result


def redis_check(settings: Settings) -> Callable[[], None]:
    """A check that says when Redis is away; those who wait for it are the workers."""
    from worker.app import make_app
    from worker.dispatch import look_at_queues

    app, waiting = make_app(settings), Waiting("Redis")
    next_look = 0.0

    def check() -> None:
        nonlocal next_look
        if time.monotonic() < next_look:
            return
        try:
            look_at_queues(app)
        except BrokerUnreachableError as error:
            waiting.note(error)
        else:
            waiting.note(None)
        next_look = time.monotonic() + LOOK_SECONDS

    return check


def announce_if_possible(ledger: Ledger, settings: Settings, remedy: str) -> None:
    """Ring the workers for a job that is stored; where that fails, they find it by themselves.

    Args:
        ledger: the database.
        settings: the settings.
        remedy: said where Redis or the database does not answer.
    """
    from worker.submission import announce

    try:
        announce(ledger, settings)
    except (BrokerUnreachableError, DatabaseUnreachableError) as error:
        console.note(f"{error}. The job is stored; {remedy}")
