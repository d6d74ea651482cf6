"""Compiles the kernels for this machine's CPU, once, with the C compiler that is there."""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
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


def find_build(define: str | None, isa: str | None = None) -> Build | None:
    """The library with a preprocessor symbol defined, for an instruction set; None where there is no C compiler.

    Args:
        define: BFLOAT16, or None for float32.
        isa: a name of ISAS; None: what PyTorch is held to.
    """
    compiler = next((found for name in COMPILERS if (found := shutil.which(name))), None)
    if compiler is None:
        return None
    options = (*([f"-D{define}"] if define else []), *FLAGS, *ISAS[isa or held_to()])
    digest = hashlib.sha256("\0".join([compiler, *options, _cpu()]).encode())
    for source in _sources("*.c") + _sources("*.h"):
        digest.update(source.read_bytes())
    return Build(compiler, options, _folder() / f"kernels-{digest.hexdigest()[:16]}.so")


@cache
def library(define: str | None, isa: str | None = None) -> ctypes.CDLL | None:
    """The library of `find_build`, compiled where it is not yet; None where it cannot be (which is logged)."""
    build = find_build(define, isa)
    if build is None:
        log.warning("no C compiler (%s): models run on PyTorch's own kernels, which is slower", ", ".join(COMPILERS))
        return None
    try:
        if not build.is_compiled:
            build.compile()
        return ctypes.CDLL(str(build.path))
    except (OSError, subprocess.SubprocessError) as error:
        stderr = getattr(error, "stderr", None) or b""
        log.warning(
            "the kernels do not compile: models run on PyTorch's own, which is slower (%s)\n%s",
            error,
            stderr.decode(errors="replace")[-2000:],
        )
        return None


def _sources(pattern: str) -> list[Path]:
    return sorted(Path(__file__).parent.glob(pattern))


@cache
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
