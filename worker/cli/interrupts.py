"""Signals that end a command: SIGTERM as tidily as Ctrl-C, and Ctrl-C that asks first where work is at hand."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from worker.cli import console

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def sigterm_like_ctrl_c() -> Iterator[None]:
    """SIGTERM, which service managers and batch queues send, interrupts the block, so that it leaves nothing behind."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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
