"""Opening the ledger as the settings say."""

import db.session
from db.migrations import runner
from db.session import Ledger
from worker.home import make_home
from worker.settings import Settings


def has_database(settings: Settings) -> bool:
    """False where the embedded database is still to be made, as `open_ledger` does."""
    return not settings.database_is_embedded or settings.embedded_database.exists()


def open_ledger(settings: Settings) -> Ledger:
    """Connect to the database; the embedded one is created and migrated on the way.

    Raises:
        DatabaseUnreachableError: it does not answer.
        HomeError: the home folder of the embedded one cannot be made.
        SchemaOutdatedError: its schema is not the one of this version, and it is not embedded.
    """
    if settings.database_is_embedded:
        make_home(settings.home)
    ledger = db.session.connect(settings.effective_database_url)
    if settings.database_is_embedded:
        runner.upgrade(ledger)
    db.session.check_schema(ledger)
    return ledger
