"""Which ids a dataset has had so far; on disk, since there may be many."""

import sqlite3

from db.errors import DatasetError
from db.storable import storable


class SeenIds:
    """The ids so far, each with the place of its first row."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("")  # a file without a name, in the temporary folder
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("CREATE TABLE ids (id TEXT PRIMARY KEY, place TEXT) WITHOUT ROWID")

    def add(self, name: str, value: str, place: str) -> None:
        """Take one more into account.

        Args:
            name: of the column that it is in.

        Raises:
            DatasetError: it was there before.
        """
        stored = storable(value)
        try:
            self._database.execute("INSERT INTO ids VALUES (?, ?)", (stored, storable(place)))
        except sqlite3.IntegrityError:
            (first,) = self._database.execute("SELECT place FROM ids WHERE id = ?", (stored,)).fetchone()
            raise DatasetError(
                f"the {name} {value[:200]!r} is there twice, first in {first}; give each request its own, by which its "
                "result is known"
            ) from None
        except sqlite3.Error as error:
            raise DatasetError(f"the ids cannot be kept in the temporary folder until all are read ({error})") from None
