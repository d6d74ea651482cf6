"""What a database's own error means for people: what is wrong, and what to do."""

import os
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from db.errors import DatabaseUnreachableError, DbError, SchemaOutdatedError
from db.urls import redacted_url

OUTDATED_REMEDY = "run `genarm db upgrade`"
REFUSALS = {
    "42501": "refuses: {reason}; give the user the rights of docs/security.md",
    "25006": "is read-only: {reason}; with several hosts, add target_session_attrs=read-write to the URL",
    "3F000": "has no schema to write to: {reason}; make the one that search_path names",
}
"""By SQLSTATE; trying again does not help."""
AWAY = (
    ("certificate", "is not trusted: {reason}"),
    ("password authentication failed", "refuses the user or the password: {reason}"),
    ("no password supplied", "refuses the user or the password: {reason}"),
    ('" does not exist', "cannot be used: {reason}; make it, or mend the URL"),
    ("disk is full", "cannot be written: the disk is full; make room"),
    ("No space left on device", "cannot be written: the disk is full; make room"),
    ("readonly database", "cannot be written: permission denied, or a read-only file system"),
)
"""By a part of the driver's message; a moment later it may be otherwise."""
BROKEN = ("file is not a database", "database disk image is malformed")


def complaint(url: sa.URL, error: DBAPIError) -> DbError | None:
    """The error for the user, in one line and without a password; None where only a fault in genarm explains it."""
    reason = (str(error.orig).strip().splitlines() or [type(error.orig).__name__])[0]
    where, code = f"the database at {redacted_url(url)}", getattr(error.orig, "sqlstate", None)
    if code in {"42P01", "42703"} or reason.startswith(("no such table", "no such column")):
        return SchemaOutdatedError(f"{where} lacks a table or column: {OUTDATED_REMEDY}")
    if code in REFUSALS:
        return DbError(f"{where} {REFUSALS[code].format(reason=reason)}")
    if reason.startswith(BROKEN):
        return DbError(f"{where} is no SQLite database, or a broken one ({reason}); name another file")
    if error.connection_invalidated or isinstance(error, sa.exc.OperationalError | sa.exc.InterfaceError):
        return DatabaseUnreachableError(f"{where} {_away(url, reason)}")
    return None


def _away(url: sa.URL, reason: str) -> str:
    if reason == "unable to open database file":
        return f"cannot be opened: {_why_closed(Path(str(url.database)))}"
    template = next((text for part, text in AWAY if part in reason), "does not answer: {reason}; is it running?")
    return template.format(reason=reason)


def _why_closed(path: Path) -> str:
    """Why SQLite cannot open a file, which it does not say."""
    folder = path.parent
    if not os.path.lexists(folder):
        return f"there is no folder {folder}; make it first"
    if path.is_dir():
        return "it is a folder"
    if not folder.is_dir():
        return f"{folder} is no folder"
    return f"permission denied for it or its folder {folder}, which must be writable too"
