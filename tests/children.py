"""Processes that tests start: none outlives its test, and none keeps the suite from ending."""

import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


@contextmanager
def child(command: Sequence[Any], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """A process that runs inside the block; it is killed at the end, also where the test fails or times out.

    `subprocess.Popen` alone waits for the process there, for ever where the process does not end by itself.

    Args:
        command: the program and its arguments.
        options: those of `subprocess.Popen`.
    """
    with subprocess.Popen([str(word) for word in command], **options) as process:
        try:
            yield process
        finally:
            process.kill()


def take_interrupts() -> None:
    """Take SIGINT and SIGQUIT again where the parent ignores them, as a shell does in the background of a script.

    A process passes ignored signals on to its children, which would not end when tests interrupt them.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGQUIT) is signal.SIG_IGN:
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)
