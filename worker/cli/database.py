"""`genarm db …`: migrations."""

import click

from db.migrations import runner
from db.session import Ledger, connect, redacted
from worker.cli import console
from worker.settings import Settings


@click.group(name="db")
def database() -> None:
    """Bring the database to another version of its schema.

    \b
    Example:
        genarm db upgrade
    """


def _ledger() -> Ledger:
    settings = Settings()
    if settings.database_is_embedded:
        settings.home.mkdir(parents=True, exist_ok=True)
    return connect(settings.effective_database_url)


@database.command()
@click.argument("revision", default="head")
def upgrade(revision: str) -> None:
    """Bring the schema up to a revision, the newest where none is given.

    \b
    Example:
        genarm db upgrade
    """
    ledger = _ledger()
    runner.upgrade(ledger, revision)
    console.note(f"{redacted(ledger)} has schema {runner.current(ledger)}")


@database.command()
@click.argument("revision")
@click.option("--yes", is_flag=True, help="Do not ask.")
def downgrade(revision: str, yes: bool) -> None:
    """Bring the schema down to a revision; `base` removes all tables and their rows.

    \b
    Example:
        genarm db downgrade base --yes
    """
    ledger = _ledger()
    if not yes:
        click.confirm(f"Downgrade {redacted(ledger)} to {revision}? Rows may be lost.", abort=True, err=True)
    runner.downgrade(ledger, revision)
    console.note(f"{redacted(ledger)} has schema {runner.current(ledger)}")


@database.command()
def current() -> None:
    """Print the revision of the schema.

    \b
    Example:
        genarm db current
    """
    console.out(runner.current(_ledger()) or "none")
