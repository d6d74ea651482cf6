"""Signals that end a command: SIGTERM and SIGHUP tidily, as Ctrl-C; and Ctrl-C that asks first where work goes on."""

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from worker.cli import console

ENDING = (signal.SIGTERM, signal.SIGHUP)
"""What service managers and batch queues send, and what a terminal that goes away sends."""


@contextmanager
def signals_like_ctrl_c() -> Iterator[None]:
    """SIGTERM and SIGHUP interrupt the block, so that it leaves nothing behind; what nohup ignores stays ignored."""
    with _handled(ENDING, signal.default_int_handler):
        yield


@contextmanager
def stop_on_signal(text: str) -> Iterator[Callable[[], bool]]:
    """A callable that tells whether SIGINT, SIGTERM or SIGHUP came while the block runs; a second one interrupts it.

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

    with _handled((signal.SIGINT, *ENDING), ask):
        yield lambda: is_asked


@contextmanager
def _handled(numbers: Sequence[signal.Signals], handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle signals inside the block, but those that are ignored."""
    heard = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before)
