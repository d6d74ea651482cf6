"""Exit codes, and the one place where errors become a line and a code."""

import errno
import os
import sys
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any

import click
from pydantic import ValidationError

from db.errors import (
    AmbiguousJobError,
    DatabaseUnreachableError,
    DatasetError,
    DbError,
    JobNotFoundError,
    KeyReusedError,
)
from models.errors import ModelsError
from worker.cli import console
from worker.cli.interrupts import signals_like_ctrl_c
from worker.errors import BrokerUnreachableError, RedisStartError, ServiceError
from worker.settings import faults, unknown_variables


class Exit(IntEnum):
    """Exit codes of every command."""

    DONE = 0
    FAILURE = 1
    USAGE = 2
    FAILED_ROWS = 3
    NOT_FOUND = 4
    UNREACHABLE = 5
    INTERRUPTED = 130


CODES: list[tuple[type[Exception], Exit]] = [
    (JobNotFoundError, Exit.NOT_FOUND),
    (DatabaseUnreachableError, Exit.UNREACHABLE),
    (BrokerUnreachableError, Exit.UNREACHABLE),
    (RedisStartError, Exit.UNREACHABLE),
    (AmbiguousJobError, Exit.USAGE),
    (DatasetError, Exit.USAGE),
    (KeyReusedError, Exit.USAGE),
    (ModelsError, Exit.USAGE),
    (ValidationError, Exit.USAGE),
    (DbError, Exit.FAILURE),
    (ServiceError, Exit.FAILURE),
    (OSError, Exit.FAILURE),
]
DISK_FULL = "the disk is full; make room, and run the command again"


def one_line(error: Exception) -> str:
    """An error as people see it."""
    if isinstance(error, ValidationError):
        return "; ".join(f"{name}: {fault}" for name, fault in faults(error).items())
    if isinstance(error, OSError):
        reason = DISK_FULL if error.errno == errno.ENOSPC else error.strerror or str(error) or type(error).__name__
        return f"{os.fsdecode(error.filename)}: {reason}" if isinstance(error.filename, str | bytes) else reason
    return str(error)


class Group(click.Group):
    """The root command: errors become one line on stderr and an exit code; SIGTERM and SIGHUP end it as Ctrl-C does."""

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, *rest: Any, **extra: Any) -> Any:
        """Run the command line, whose output is UTF-8."""
        console.use_utf8()
        try:
            return super().main(args, prog_name, *rest, **extra)
        except OSError as error:  # of the help text, which has no reader or no room
            console.drop_stdout()
            console.error(one_line(error))
            sys.exit(Exit.FAILURE)

    def invoke(self, context: click.Context) -> Any:
        """Run the command."""
        try:
            with signals_like_ctrl_c():
                _warn_of_unknown_variables()
                return _flushed(lambda: super(Group, self).invoke(context))
        except BrokenPipeError:  # `genarm … | head`: nobody reads on
            console.drop_stdout()
            context.exit(Exit.FAILURE)
        except tuple(kind for kind, _ in CODES) as error:
            if isinstance(error, OSError):
                console.drop_stdout()  # it may be what failed
            console.error(one_line(error))
            context.exit(next(code for kind, code in CODES if isinstance(error, kind)))
        except (KeyboardInterrupt, click.Abort):
            console.note("Interrupted.")
            context.exit(Exit.INTERRUPTED)


def _flushed(command: Callable[[], Any]) -> Any:
    """What a command returns, once all that it wrote has arrived."""
    try:
        return command()
    finally:
        sys.stdout.flush()


def _warn_of_unknown_variables() -> None:
    """A setting whose name is misspelt would be left out in silence."""
    for name, meant in unknown_variables(os.environ).items():
        console.note(f"Warning: {name} is no setting{f'; did you mean {meant}?' if meant else ''}")
