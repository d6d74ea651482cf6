"""Compiles the kernels for this machine's CPU, once, with the C compiler that is there."""

import ctypes
import fcntl
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import platformdirs
import torch

log = logging.getLogger(__name__)

COMPILERS = ("cc", "gcc", "clang")
FLAGS = (
    "-O3", "-march=native", "-fopenmp", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi",
)  # fmt: skip
ISAS = {
    "native": (),
    "avx512": ("-mno-avx512bf16",),
    "avx2": ("-mno-avx512f",),
    "sse": ("-mno-avx",),
}
"""Instruction sets to compile for, and the options that leave out what the machine has beyond them."""
COMPILE_SECONDS = 300
NO_COMPILER = (
    f"no C compiler ({', '.join(COMPILERS)}): models run on PyTorch's operations, which is slower on most CPUs and not "
    "the same bit for bit in every batch; install one (`apt-get install gcc`), or accept that with GENARM_KERNELS=torch"
)


@dataclass(frozen=True)
class Build:
    """A library of the kernels, compiled or not.

    Args:
        compiler: path of the C compiler.
        options: for each source file.
        path: where the library is once it is compiled. The name is a digest of all that the library depends on.
    """

    compiler: str
    options: tuple[str, ...]
    path: Path

    @property
    def is_compiled(self) -> bool:
        """Whether the library is there, so that nothing has to be compiled."""
        return self.path.exists()

    def compile(self) -> None:
        """Compile the sources side by side and link them.

        Raises:
            OSError, subprocess.SubprocessError: the compiler fails, or takes too long.
        """
        with tempfile.TemporaryDirectory(dir=self.path.parent) as folder:
            with ThreadPoolExecutor() as threads:
                objects = list(threads.map(partial(self._compile_source, Path(folder)), _sources("*.c")))
            unfinished = Path(folder) / self.path.name
            self._run([*map(str, objects), "-shared", "-fopenmp", "-o", str(unfinished), "-lm"])
            unfinished.replace(self.path)  # whole or not there, also for processes that start beside this one

    def _compile_source(self, folder: Path, source: Path) -> Path:
        target = folder / f"{source.stem}.o"
        self._run([*self.options, "-c", str(source), "-o", str(target)])
        return target

    def _run(self, arguments: list[str]) -> None:
        subprocess.run([self.compiler, *arguments], check=True, capture_output=True, timeout=COMPILE_SECONDS)


def held_to() -> str:
    """The instruction set that PyTorch is held to (ATEN_CPU_CAPABILITY): the kernels use no other.

    Returns:
        A name of ISAS; `native` where PyTorch may use all that the machine has.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return "native"
    return {"AVX2": "avx2", "DEFAULT": "sse"}.get(torch.backends.cpu.get_cpu_capability(), "native")


def instruction_set() -> str:
    """What the kernels are compiled for, for people: AVX2, AVX-512 with bfloat16, NEON, …"""
    machine = platform.machine().lower()
    if machine not in ("x86_64", "amd64"):
        return "NEON" if machine in ("aarch64", "arm64") else machine
    capability = torch.backends.cpu.get_cpu_capability()
    if capability == "AVX512":
        return "AVX-512 with bfloat16" if torch.cpu._is_avx512_bf16_supported() else "AVX-512"
    return "SSE" if capability == "DEFAULT" else capability


def find_compiler() -> str | None:
    """Path of the C compiler."""
    return next((found for name in COMPILERS if (found := shutil.which(name))), None)


def find_build(define: str | None, isa: str | None = None) -> Build | None:
    """The library with a preprocessor symbol defined, for an instruction set; None where there is no C compiler.

    Args:
        define: BFLOAT16, or None for float32.
        isa: a name of ISAS; None: what PyTorch is held to.
    """
    if (compiler := find_compiler()) is None:
        return None
    options = (*([f"-D{define}"] if define else []), *FLAGS, *ISAS[isa or held_to()])
    digest = hashlib.sha256("\0".join([compiler, *options, _cpu()]).encode())
    for source in _sources("*.c") + _sources("*.h"):
        digest.update(source.read_bytes())
    return Build(compiler, options, folder() / f"kernels-{digest.hexdigest()[:16]}.so")


@cache
def library(define: str | None, isa: str | None = None) -> ctypes.CDLL | None:
    """The library of `find_build`, compiled where it is not yet; None where it cannot be (which is logged)."""
    build = find_build(define, isa)
    if build is None:
        log.warning(NO_COMPILER)
        return None
    try:
        compile_missing([build])
        return ctypes.CDLL(str(build.path))
    except (OSError, subprocess.SubprocessError) as error:
        stderr = getattr(error, "stderr", None) or b""
        log.warning(
            "the kernels do not compile: models run on PyTorch's own, which is slower (%s)\n%s",
            error,
            stderr.decode(errors="replace")[-2000:],
        )
        return None


def compile_missing(builds: Sequence[Build]) -> None:
    """Compile libraries side by side, where they are not there, and say so in the log before and after.

    Raises:
        OSError, subprocess.SubprocessError: the compiler fails, or takes too long.
    """
    if all(build.is_compiled for build in builds):
        return
    with alone():
        missing = [build for build in builds if not build.is_compiled]
        if not missing:
            return
        log.info("compiling the CPU kernels for %s, once for this machine (about 20 s)", instruction_set())
        started = time.monotonic()
        with ThreadPoolExecutor() as threads:
            list(threads.map(Build.compile, missing))
        log.info("compiled the CPU kernels in %.0f s", time.monotonic() - started)


@contextmanager
def alone() -> Iterator[None]:
    """Let one process at a time compile or measure; others wait, and find what it has kept."""
    with (folder() / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for another process, which compiles or measures the CPU kernels")
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            log.debug("no locks in %s: two processes may do the same work", folder())
        yield


def _sources(pattern: str) -> list[Path]:
    return sorted(Path(__file__).parent.glob(pattern))


@cache
def folder() -> Path:
    """Where compiled kernels are kept; a folder of this process alone where the user's cache cannot be written."""
    path = platformdirs.user_cache_path("genarm") / "kernels"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="genarm-"))
    if os.access(path, os.W_OK) and path.stat().st_uid == os.getuid():
        return path
    return Path(tempfile.mkdtemp(prefix="genarm-"))


def _cpu() -> str:
    """What the CPU can do: a home folder may be shared by machines of several kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
