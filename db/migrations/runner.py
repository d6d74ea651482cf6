"""Upgrades and downgrades of the schema, safe when several processes begin them at once."""

import re
from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError

from db.errors import DbError
from db.session import Ledger, check_encoding, reading, writing

LOCK = 0x67656E61726D
"""Key of the advisory lock on PostgreSQL; SQLite's write lock does the same there."""
REVISION = re.compile(r"head|base|[0-9]{4}|[+-][0-9]{1,2}")


def upgrade(ledger: Ledger, revision: str = "head") -> None:
    """Bring the schema up to a revision, in one transaction.

    Raises:
        DatabaseUnreachableError: the database does not answer.
        DbError: there is no such revision, the database is newer than this version of genarm, or its encoding is not
            UTF8.
    """
    check_encoding(ledger)
    _migrate(ledger, command.upgrade, revision)


def downgrade(ledger: Ledger, revision: str) -> None:
    """Bring the schema down to a revision; `base` removes all tables.

    Raises:
        DatabaseUnreachableError: the database does not answer.
        DbError: there is no such revision.
    """
    _migrate(ledger, command.downgrade, revision)


def current(ledger: Ledger) -> str | None:
    """The revision of the database; None when it has no schema.

    Raises:
        DatabaseUnreachableError: it does not answer.
    """
    with reading(ledger) as connection:
        return MigrationContext.configure(connection).get_current_revision()


def head() -> str:
    """The revision that this version of genarm needs."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    if revision is None:
        raise DbError("the installation lacks its migrations")
    return revision


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _migrate(ledger: Ledger, migrate: Callable[..., None], revision: str) -> None:
    config = _config()
    if not REVISION.fullmatch(revision):
        raise DbError(f"{revision!r} is no revision; use head, base, or a number like 0001")
    try:
        with writing(ledger) as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))
            config.attributes["connection"] = connection
            migrate(config, revision)
    except CommandError as error:
        raise DbError(f"the schema cannot be migrated to {revision!r}: {error}") from None
