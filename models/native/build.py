"""Compiles the kernels for this machine's CPU, once, with the C compiler that is there."""

import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import platformdirs

log = logging.getLogger(__name__)

COMPILERS = ("cc", "gcc", "clang")
FLAGS = (
    "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC",
    "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi", "-lm",
)  # fmt: skip
COMPILE_SECONDS = 300


@cache
def library(define: str | None) -> ctypes.CDLL | None:
    """The kernels compiled with a preprocessor symbol defined, or None where they cannot be (which is logged)."""
    compiler = next((found for name in COMPILERS if (found := shutil.which(name))), None)
    if compiler is None:
        log.warning("no C compiler (%s): models run on PyTorch's own kernels, which is slower", ", ".join(COMPILERS))
        return None
    options = [*([f"-D{define}"] if define else []), *FLAGS]
    try:
        return ctypes.CDLL(str(_compiled(compiler, options)))
    except (OSError, subprocess.SubprocessError) as error:
        stderr = getattr(error, "stderr", None) or b""
        log.warning(
            "the kernels do not compile: models run on PyTorch's own, which is slower (%s)\n%s",
            error,
            stderr.decode(errors="replace")[-2000:],
        )
        return None


def _compiled(compiler: str, options: list[str]) -> Path:
    sources = sorted(Path(__file__).parent.glob("*.c"))
    headers = sorted(Path(__file__).parent.glob("*.h"))
    digest = hashlib.sha256("\0".join([compiler, *options, _cpu()]).encode())
    for source in sources + headers:
        digest.update(source.read_bytes())
    target = _folder() / f"kernels-{digest.hexdigest()[:16]}.so"
    if target.exists():
        return target
    with tempfile.NamedTemporaryFile(dir=target.parent, suffix=".so", delete=False) as unfinished:
        pass
    try:
        command = [compiler, *map(str, sources), "-o", unfinished.name, *options]
        subprocess.run(command, check=True, capture_output=True, timeout=COMPILE_SECONDS)
        Path(unfinished.name).replace(target)  # whole or not there, also for processes that start beside this one
    finally:
        Path(unfinished.name).unlink(missing_ok=True)
    return target


def _folder() -> Path:
    """Where compiled kernels are kept; a folder of this process alone where the user's cache cannot be written."""
    folder = platformdirs.user_cache_path("genarm") / "kernels"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="genarm-"))
    if os.access(folder, os.W_OK) and folder.stat().st_uid == os.getuid():
        return folder
    return Path(tempfile.mkdtemp(prefix="genarm-"))


def _cpu() -> str:
    """What the CPU can do: a home folder may be shared by machines of several kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
