"""Exit codes, and the one place where errors become a line and a code."""

import os
import sys
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
from models.spec import explain
from worker.cli import console
from worker.cli.interrupts import sigterm_like_ctrl_c
from worker.errors import BrokerUnreachableError, RedisStartError, ServiceError


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
]


def one_line(error: Exception) -> str:
    """An error of ours as people see it."""
    return f"settings: {explain(error)}" if isinstance(error, ValidationError) else str(error)


class Group(click.Group):
    """The root command: our errors become one line on stderr and an exit code; SIGTERM ends it as Ctrl-C does."""

    def invoke(self, context: click.Context) -> Any:
        """Run the command."""
        try:
            with sigterm_like_ctrl_c():
                return super().invoke(context)
        except tuple(kind for kind, _ in CODES) as error:
            console.error(one_line(error))
            context.exit(next(code for kind, code in CODES if isinstance(error, kind)))
        except BrokenPipeError:  # `genarm … | head`: nobody reads on
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is buffered has nowhere to go
            context.exit(Exit.FAILURE)
        except (KeyboardInterrupt, click.Abort):
            console.note("Interrupted.")
            context.exit(Exit.INTERRUPTED)
