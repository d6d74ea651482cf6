"""`genarm db …`: migrations."""

import click

from db.migrations import runner
from db.session import Ledger, connect, redacted
from worker.cli import console
from worker.cli.errors import Exit
from worker.cli.options import json_option
from worker.home import make_home
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
        make_home(settings.home)
    return connect(settings.effective_database_url)


def _tell(ledger: Ledger, as_json: bool) -> None:
    revision = runner.current(ledger)
    facts = {"database": redacted(ledger), "revision": revision, "newest": runner.head()}
    console.fact(facts, f"{redacted(ledger)} has schema {revision}", as_json)


@database.command()
@click.argument("revision", default="head")
@json_option
def upgrade(revision: str, as_json: bool) -> None:
    """Bring the schema up to a revision, the newest where none is given.

    \b
    Example:
        genarm db upgrade
    """
    ledger = _ledger()
    runner.upgrade(ledger, revision)
    _tell(ledger, as_json)


@database.command()
@click.argument("revision")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@click.pass_context
def downgrade(context: click.Context, /, revision: str, yes: bool, as_json: bool) -> None:
    """Bring the schema down to a revision; `base` removes all tables and their rows.

    \b
    Example:
        genarm db downgrade base --yes
    """
    ledger = _ledger()
    if not (yes or console.agreed(f"Downgrade {redacted(ledger)} to {revision}? Rows may be lost.")):
        context.exit(Exit.FAILURE)
    runner.downgrade(ledger, revision)
    _tell(ledger, as_json)


@database.command()
@json_option
def current(as_json: bool) -> None:
    """Print the revision of the schema.

    \b
    Example:
        genarm db current
    """
    ledger = _ledger()
    if as_json:
        _tell(ledger, as_json)
    else:
        console.out(runner.current(ledger) or "none")
