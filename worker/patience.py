"""Waiting for a backend that is away, without filling the log."""

import math
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from celery.utils.log import get_logger

from worker import metrics

log = get_logger(__name__)

T = TypeVar("T")
FIRST_WAIT_SECONDS = 0.1
LONGEST_WAIT_SECONDS = 5.0


class Patience:
    """Calls a backend from any thread; logs once when it goes away, and once when it is back.

    Args:
        backend: its name in the log.
        away: the error that says that it is away.
        stopping: ends all waiting.
    """

    def __init__(self, backend: str, away: type[Exception], stopping: threading.Event) -> None:
        self._backend = backend
        self._away = away
        self._stopping = stopping
        self._is_away = False
        self._last_error = -math.inf

    def attempt(self, call: Callable[[], T]) -> T | None:
        """Call once; None where the backend is away."""
        try:
            result = call()
        except self._away as error:
            self._note(error)
            return None
        self._note(None)
        return result

    def insist(self, call: Callable[[], T]) -> T:
        """Call until the backend answers; raises its error once the service is stopping."""
        wait = FIRST_WAIT_SECONDS
        while True:
            try:
                result = call()
            except self._away as error:
                self._note(error)
                if self._stopping.wait(wait):
                    raise
                wait = min(2 * wait, LONGEST_WAIT_SECONDS)
            else:
                self._note(None)
                return result

    def seconds_since_outage(self) -> float:
        """How long ago a call failed last; infinite when none has."""
        return time.monotonic() - self._last_error

    def _note(self, error: Exception | None) -> None:
        metrics.BACKEND_UP.labels(self._backend).set(error is None)
        if error is not None:
            self._last_error = time.monotonic()
        if error is not None and not self._is_away:
            log.warning("%s is away, waiting for it: %s", self._backend, error)
        elif error is None and self._is_away:
            log.warning("%s is back", self._backend)
        self._is_away = error is not None
