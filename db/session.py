"""Connections to SQLite and PostgreSQL, and the one place where driver errors become ours."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from db.complaints import OUTDATED_REMEDY, complaint
from db.errors import DbError, SchemaOutdatedError
from db.storable import storable_json
from db.urls import connection_parameters, parse_url, redacted_url

Ledger: TypeAlias = sa.Engine
"""What the functions of this package take first; `connect` gives it."""

BUSY_SECONDS = 30
"""SQLite waits so long for another writer."""
CONNECTION_DEFAULTS = {"connect_timeout": 10}
CONNECTION_RULES = {"client_encoding": "UTF8", "prepare_threshold": None}
"""Whatever the URL, PGCLIENTENCODING or the role say: text is UTF-8, and PgBouncer finds no prepared statements."""
ENCODING = "UTF8"
PAGE_BYTES = 16384
"""Arrays of token rewards are long: fewer overflow pages make the file 40 % smaller."""
READ_ONLY = "genarm_read_only"


def connect(url: str | sa.URL) -> Ledger:
    """An engine for a database URL; nothing is opened yet.

    Args:
        url: as `db.urls.parse_url` takes or gives it.

    Raises:
        DbError: the URL is none, or names a database that genarm does not know; the message holds no password.
    """
    parsed = parse_url(url) if isinstance(url, str) else url
    if parsed.get_backend_name() == "sqlite":
        return _connect_sqlite(parsed)
    return sa.create_engine(
        parsed,
        pool_pre_ping=True,
        json_serializer=storable_json,
        hide_parameters=True,  # errors are logged, and parameters are people's prompts and completions
        connect_args=CONNECTION_DEFAULTS | connection_parameters(parsed) | CONNECTION_RULES,
    )


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
        if (ours := complaint(ledger.url, error)) is None:
            raise
        raise ours from error


def redacted(ledger: Ledger | str) -> str:
    """The database's URL without its password."""
    return redacted_url(parse_url(ledger) if isinstance(ledger, str) else ledger.url)


def check_encoding(ledger: Ledger) -> None:
    """Make sure that the database can store every text: PostgreSQL's encoding is fixed when a database is made.

    Raises:
        DbError: it is another than UTF8.
        DatabaseUnreachableError: it does not answer.
    """
    if ledger.dialect.name != "postgresql":
        return
    with reading(ledger) as connection:
        encoding = connection.exec_driver_sql("SHOW server_encoding").scalar_one()
    if encoding != ENCODING:
        raise DbError(
            f"the database at {redacted(ledger)} has the encoding {encoding}, which cannot store every text; make "
            f"another with: createdb --encoding=UTF8 --locale=C --template=template0 NAME"
        )


def check_schema(ledger: Ledger) -> None:
    """Make sure that the database has this version's schema, and an encoding that can store every text.

    Raises:
        SchemaOutdatedError: it has another, or none.
        DbError: the encoding is another than UTF8.
        DatabaseUnreachableError: it does not answer.
    """
    from db.migrations import runner

    check_encoding(ledger)
    current, head = runner.current(ledger), runner.head()
    if current == head:
        return
    what = "has no genarm tables yet" if current is None else f"has schema {current}, this version needs {head}"
    raise SchemaOutdatedError(f"the database at {redacted(ledger)} {what}: {OUTDATED_REMEDY}")
