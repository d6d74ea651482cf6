"""What takes a while before models run, told to whoever waits for it."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SOURCE = "models.native"
"""The package whose log lines are told: the kernels are compiled and measured once for a machine."""


class Teller(logging.Handler):
    """Passes the text of log lines on."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__()
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        """Pass on the first line of a record; what a compiler said stays in the log."""
        self._tell(record.getMessage().partition("\n")[0])


@contextmanager
def telling(tell: Callable[[str], None]) -> Iterator[None]:
    """Tell what the models do before they can run, inside the block; the log gets it as well."""
    logger, teller = logging.getLogger(SOURCE), Teller(tell)
    level = logger.level
    logger.addHandler(teller)
    if logger.getEffectiveLevel() > logging.INFO:
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(teller)
        logger.setLevel(level)
