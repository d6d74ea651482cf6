"""Which shards of this process may run beside others: all, except a suspect row, which runs alone."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LOOK_SECONDS = 0.1


class Company:
    """A lock that many shards share, until one asks to be alone.

    One that waits to be alone lets those that run come to their end, and no other begin.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._beside = 0
        self._alone_waiting = 0
        self._is_alone = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Run beside others; waits while one is alone, or waits to be."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_alone and not self._alone_waiting)
            self._beside += 1
        try:
            yield
        finally:
            with self._changed:
                self._beside -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self, give_up: Callable[[], bool]) -> Iterator[bool]:
        """From inside `shared`: run while nobody else does. Gives False when `give_up` said so before."""
        with self._changed:
            self._beside -= 1
            self._alone_waiting += 1
            self._changed.notify_all()
            while not (gave_up := give_up()):
                if self._changed.wait_for(lambda: not self._is_alone and not self._beside, LOOK_SECONDS):
                    break
            self._alone_waiting -= 1
            self._is_alone = self._is_alone or not gave_up
        try:
            yield not gave_up
        finally:
            with self._changed:
                if not gave_up:
                    self._is_alone = False
                self._beside += 1
                self._changed.notify_all()
