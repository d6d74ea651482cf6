"""Connections to SQLite and PostgreSQL, and the one place where driver errors become ours."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from db.errors import DatabaseUnreachableError, DbError, SchemaOutdatedError
from db.storable import storable_json

Ledger: TypeAlias = sa.Engine
"""What the functions of this package take first; `connect` gives it."""

BUSY_SECONDS = 30
"""SQLite waits so long for another writer."""
CONNECT_SECONDS = 10
PAGE_BYTES = 16384
"""Arrays of token rewards are long: fewer overflow pages make the file 40 % smaller."""
OUTDATED_REMEDY = "run `genarm db upgrade`"
READ_ONLY = "genarm_read_only"


def connect(url: str) -> Ledger:
    """An engine for a database URL; nothing is opened yet.

    Args:
        url: `sqlite:///PATH`, or `postgresql://USER:PASSWORD@HOST/NAME`.

    Raises:
        DbError: the URL is none, or names a database that genarm does not know; the message holds no password.
    """
    parsed = _parsed(url)
    try:
        if parsed.get_backend_name() == "sqlite":
            return _connect_sqlite(parsed)
        return sa.create_engine(
            parsed,
            pool_pre_ping=True,
            json_serializer=storable_json,
            hide_parameters=True,  # errors are logged, and parameters are people's prompts and completions
            connect_args={"connect_timeout": CONNECT_SECONDS, "prepare_threshold": None},
        )
    except (ImportError, NoSuchModuleError):
        raise DbError("PostgreSQL needs its driver: pip install 'genarm[postgres]'") from None


def _parsed(url: str) -> sa.URL:
    try:
        parsed = sa.make_url(url)
        backend = parsed.get_backend_name()
    except (ArgumentError, NoSuchModuleError, ValueError):
        raise DbError(
            "the database URL is not one; use sqlite:///PATH or postgresql://USER:PASSWORD@HOST/NAME"
        ) from None
    if backend in {"postgres", "postgresql"}:
        return parsed.set(drivername="postgresql+psycopg")
    if backend == "sqlite":
        if not parsed.database or parsed.database == ":memory:":
            raise DbError("a SQLite database must be a file, which workers can share: sqlite:///PATH")
        return parsed.set(drivername="sqlite")
    raise DbError(f"the database is {backend!r}; genarm knows SQLite and PostgreSQL")


def _connect_sqlite(url: sa.URL) -> Ledger:
    engine = sa.create_engine(
        url,
        json_serializer=storable_json,
        hide_parameters=True,
        connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False},
    )

    @sa.event.listens_for(engine, "connect")
    def set_up(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # transactions begin below, not in the driver
        for pragma in (
            f"page_size = {PAGE_BYTES}",
            "journal_mode = WAL",
            "synchronous = NORMAL",  # consistent after a crash of the machine; the last moments may be done again
            "foreign_keys = ON",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        # A writer that begins as a reader cannot wait for another writer: it fails at once.
        is_reader = connection.get_execution_options().get(READ_ONLY)
        connection.exec_driver_sql("BEGIN" if is_reader else "BEGIN IMMEDIATE")

    return engine


@contextmanager
def writing(ledger: Ledger) -> Iterator[sa.Connection]:
    """A transaction that commits at the end of the block.

    Raises:
        DatabaseUnreachableError: the database does not answer; the commit may have happened, so that every
            transaction of this package can be repeated.
        SchemaOutdatedError: a table or column is missing.
    """
    with _our_errors(ledger), ledger.begin() as connection:
        yield connection


@contextmanager
def reading(ledger: Ledger) -> Iterator[sa.Connection]:
    """A transaction that only reads, and waits for no writer.

    Raises:
        DatabaseUnreachableError: the database does not answer.
        SchemaOutdatedError: a table or column is missing.
    """
    with _our_errors(ledger), ledger.connect().execution_options(**{READ_ONLY: True}) as connection:
        yield connection


@contextmanager
def _our_errors(ledger: Ledger) -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        reason = (str(error.orig).strip().splitlines() or [type(error.orig).__name__])[0]
        if _lacks_schema(error, reason):
            raise SchemaOutdatedError(
                f"the database at {redacted(ledger)} lacks a table or column: {OUTDATED_REMEDY}"
            ) from error
        if error.connection_invalidated or isinstance(error, sa.exc.OperationalError | sa.exc.InterfaceError):
            what = "is not trusted" if _is_about_trust(reason) else "does not answer"
            raise DatabaseUnreachableError(f"the database at {redacted(ledger)} {what}: {reason}") from error
        raise


def _is_about_trust(reason: str) -> bool:
    """Whether libpq refused the server: another CA, or a certificate of another host."""
    return "certificate" in reason


def _lacks_schema(error: DBAPIError, reason: str) -> bool:
    code = getattr(error.orig, "sqlstate", None)
    return code in {"42P01", "42703"} or reason.startswith(("no such table", "no such column"))


def redacted(ledger: Ledger | str) -> str:
    """The database's URL without its password."""
    url = _parsed(ledger) if isinstance(ledger, str) else ledger.url
    return url.set(drivername=url.get_backend_name()).render_as_string(hide_password=True)


def check_schema(ledger: Ledger) -> None:
    """Make sure that the database has this version's schema.

    Raises:
        SchemaOutdatedError: it has another, or none.
        DatabaseUnreachableError: it does not answer.
    """
    from db.migrations import runner

    current, head = runner.current(ledger), runner.head()
    if current == head:
        return
    what = "has no genarm tables yet" if current is None else f"has schema {current}, this version needs {head}"
    raise SchemaOutdatedError(f"the database at {redacted(ledger)} {what}: {OUTDATED_REMEDY}")
