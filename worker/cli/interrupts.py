"""Ctrl-C that asks first: the work at hand is ended tidily, and only a second one breaks it off."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from worker.cli import console

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_on_signal(text: str) -> Iterator[Callable[[], bool]]:
    """A callable that tells whether SIGINT or SIGTERM came while the block runs; a second one interrupts it.

    Args:
        text: for people, when the first one comes.
    """
    is_asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal is_asked
        if is_asked:
            raise KeyboardInterrupt
        is_asked = True
        console.note_in_signal(text)

    before = {number: signal.signal(number, ask) for number in SIGNALS}
    try:
        yield lambda: is_asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
