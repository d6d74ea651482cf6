"""What can go wrong with the ledger and with datasets; every message is one line for the user, with the remedy."""


class DbError(Exception):
    """Base of the errors below; `str()` of it is one line for the user."""

    def __str__(self) -> str:
        """One line without control characters, whatever names of files or columns are in it."""
        line = " ".join(super().__str__().split())
        return "".join(letter if letter.isprintable() else "\ufffd" for letter in line)


class DatabaseUnreachableError(DbError):
    """The database does not answer now: it is away, restarting or locked. What was asked may be asked again."""


class SchemaOutdatedError(DbError):
    """The database has the schema of another version of genarm, or none."""


class JobNotFoundError(DbError):
    """No job has this id."""


class AmbiguousJobError(DbError):
    """Several jobs have ids that begin like this."""


class JobActiveError(DbError):
    """The job is running, so that this cannot be done to it now."""


class KeyReusedError(DbError):
    """The key of a submission belongs to a job with another spec or other rows."""


class DatasetError(DbError):
    """A dataset cannot be read or written; nothing was stored."""
