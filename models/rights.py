"""The rights of files that are written: those of any new file, by the user's umask."""

import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path


def give_usual_rights(paths: Iterable[Path]) -> None:
    """Give files and folders the rights that new ones get; safetensors and tempfile leave theirs to the owner alone.

    Args:
        paths: of this user.
    """
    with tempfile.TemporaryDirectory(prefix="genarm-umask-") as folder:
        probe = Path(folder) / "probe"
        probe.mkdir()
        mode = stat.S_IMODE(probe.stat().st_mode) & 0o777
    for path in paths:
        path.chmod(mode if path.is_dir() else mode & 0o666)
