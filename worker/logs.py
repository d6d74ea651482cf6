"""Log lines of a worker: for people, or JSON objects; each with the job and shard it is about, none with a password."""

import json
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

CHATTY_LOGGERS = ("celery.worker.strategy", "celery.app.trace", "alembic")
"""Celery's log two lines a message, where the task logs one line a shard."""
PASSWORD = re.compile(r"(://[^\s/:@]*:)[^\s@]*(@)")

_subject: ContextVar[dict[str, Any] | None] = ContextVar("subject", default=None)


@contextmanager
def about(**ids: Any) -> Iterator[None]:
    """Put these ids (job, shard, request) into every line that this thread logs inside the block."""
    token = _subject.set({**(_subject.get() or {}), **ids})
    try:
        yield
    finally:
        _subject.reset(token)


def masked(text: str) -> str:
    """The text with *** for the passwords of URLs in it."""
    return PASSWORD.sub(r"\1***\2", text)


class ConsoleFormatter(logging.Formatter):
    """`2026-01-31 23:59:59 INFO tasks: … [job=… shard=…]`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and the traceback where there is one."""
        line = masked(super().format(record))
        ids = _subject.get()
        return f"{line} [{' '.join(f'{name}={value}' for name, value in ids.items())}]" if ids else line


class JsonFormatter(logging.Formatter):
    """An object per line: time (UTC), level, logger, message, the ids, and the traceback as `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        """The object."""
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": masked(record.getMessage()),
            **(_subject.get() or {}),
        }
        if record.exc_info:
            fields["exception"] = masked(self.formatException(record.exc_info))
        return json.dumps(fields, ensure_ascii=False, default=str)


def set_up(log_format: str, level: int, file: str | None = None) -> None:
    """Send all lines of this process to stderr, or to a file.

    Args:
        log_format: `console` or `json`.
        level: the least severity, as in `logging`.
        file: appended to.
    """
    handler = logging.FileHandler(file, encoding="utf-8") if file else logging.StreamHandler(sys.stderr)
    if log_format == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(ConsoleFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%Y-%m-%d %H:%M:%S"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)
    for name in CHATTY_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
