"""Commands whose output goes to one log, and what is left behind when it is over."""

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


class Failed(Exception):  # noqa: N818  # it ends the run
    """Something is not as it should be; one line."""


class Shell:
    """Runs commands and logs them.

    Args:
        log: everything that is run, with its output; the file is open as `log`.
        env: of all commands.
    """

    def __init__(self, log: Path, env: Mapping[str, str]) -> None:
        self.env = dict(env)
        self.log = log.open("w", encoding="utf-8")
        self._began = time.monotonic()

    def say(self, text: str) -> None:
        """A line for the terminal and the log."""
        line = f"[{time.monotonic() - self._began:5.0f} s] {text}"
        print(line, flush=True)
        self.write(line)

    def write(self, text: str) -> None:
        """Lines for the log alone."""
        self.log.write(text + "\n")
        self.log.flush()

    def run(self, *words: Any, check: bool = True, **options: Any) -> str:
        """The output (stdout and stderr) of a command.

        Raises:
            Failed: its exit code is not 0, and `check` is true.
        """
        done = self.result(*words, **options)
        if check and done.returncode:
            last = (done.stdout.strip().splitlines() or ["without a word"])[-1]
            raise Failed(f"{' '.join(map(str, words))[:200]}: exit {done.returncode}: {last}")
        return done.stdout

    def result(self, *words: Any, **options: Any) -> "subprocess.CompletedProcess[str]":
        """The exit code and the output of a command."""
        arguments = [str(word) for word in words]
        self.write("$ " + " ".join(arguments))
        settings: dict[str, Any] = {"env": self.env, "stderr": subprocess.STDOUT} | options
        done = subprocess.run(arguments, stdout=subprocess.PIPE, text=True, check=False, **settings)
        self.write(done.stdout)
        return done

    def wait(self, what: str, condition: Callable[[], Any], seconds: float) -> Any:
        """What the condition gives as soon as it is true.

        Raises:
            Failed: it is not, after so many seconds.
        """
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            if time.monotonic() > deadline:
                raise Failed(f"after {seconds:.0f} s still not so: {what}")
            time.sleep(1.0)
        return found


def missing(programs: Sequence[str]) -> list[str]:
    """Those that this machine lacks."""
    import shutil

    return [program for program in programs if shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin") is None]
