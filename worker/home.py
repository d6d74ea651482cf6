"""The home folder: made where it is not there, or refused with the cause."""

import errno
import os
import tempfile
from pathlib import Path

from worker.errors import HomeError

REMEDY = "set GENARM_HOME to a folder that can be written"
CAUSES = {
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the file system is read-only",
    errno.ENOSPC: "the disk is full",
}


def make_home(home: Path) -> None:
    """Make the home folder with those above it, and make sure that files can be made in it.

    Raises:
        HomeError: that is not possible; the message says why.
    """
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        in_the_way = next((path for path in (home, *home.parents) if os.path.lexists(path) and not path.is_dir()), None)
        cause = f"{in_the_way} is no folder" if in_the_way else CAUSES.get(error.errno or 0, error.strerror)
        raise HomeError(f"the home folder {home} cannot be made: {cause}; {REMEDY}") from None
    if (why := why_not_writable(home)) is not None:
        raise HomeError(f"the home folder {home} cannot be written: {why}; {REMEDY}")


def why_not_writable(folder: Path) -> str | None:
    """Why no file can be made in a folder that is there; None: one can."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return CAUSES.get(error.errno or 0, error.strerror or str(error))
