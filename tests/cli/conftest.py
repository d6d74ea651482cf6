"""The command line as people type it, with tiny models and everything embedded."""

import json
import os
import pty
import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from traceback import format_exception

import pytest
from click.testing import CliRunner

from tests.children import child
from tests.tiny_models import make_model
from worker.cli.main import main


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Folders of a tiny base, an ARM that fits it, and one that does not."""
    folder = tmp_path_factory.mktemp("models")
    make_model(folder / "base", seed=1)
    make_model(folder / "arm", seed=2)
    make_model(folder / "stranger", seed=3, words=["one", "two", "three"])
    return folder


COMMAND = [sys.executable, "-c", "from worker.cli import main; main()"]


@pytest.fixture
def environment():
    """The environment of a command: no settings but those that keep tiny models exact."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith("GENARM_")}
    return outside | {"PYTHONPATH": str(Path.cwd()), "GENARM_DTYPE": "float32"}


@pytest.fixture
def genarm(tmp_path, environment):
    """Run genarm in an empty folder; returns the finished process. `settings` are GENARM_ variables."""

    def run(*arguments, stdin=None, **settings):
        return subprocess.run(
            [*COMMAND, *map(str, arguments)],
            cwd=tmp_path, env=environment | settings, input=stdin, capture_output=True, text=True, timeout=280,
            check=False,
        )  # fmt: skip

    return run


@pytest.fixture
def genarm_inside(tmp_path, monkeypatch):
    """The same in this process, which spares each command the seconds that it takes to import torch and transformers.

    Not for commands that read the process's own arguments, and not to see what libraries write to stderr.
    """
    outside = {name: None for name in os.environ if name.startswith("GENARM_")}
    outside |= {"PYTHONPATH": str(Path.cwd()), "GENARM_DTYPE": "float32"}

    def run(*arguments, stdin=None, **settings):
        words = [str(word) for word in arguments]
        changed = {name: str(value) for name, value in settings.items()}
        with monkeypatch.context() as here:
            here.chdir(tmp_path)
            done = CliRunner().invoke(main, words, input=stdin, env=outside | changed, prog_name="genarm")
        trace = "" if isinstance(done.exception, SystemExit | None) else "".join(format_exception(done.exception))
        return subprocess.CompletedProcess(words, done.exit_code, done.stdout, done.stderr + trace)

    return run


@pytest.fixture
def start_genarm(tmp_path, environment):
    """Start genarm in the same folder and leave it running; it is killed at the end of the test."""
    with ExitStack() as stack:

        def start(*arguments, stdout=None, **settings):
            return stack.enter_context(
                child(
                    [*COMMAND, *arguments],
                    cwd=tmp_path,
                    env=environment | settings,
                    stdout=stdout,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )

        yield start


class OnTerminal:
    """What a process has shown on its terminal of 80 columns."""

    def __init__(self, process, terminal):
        self.process = process
        self._terminal = terminal
        self._written = b""

    @property
    def shown(self):
        """All that it has shown so far, without the codes for colours and movements."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self._written.decode(errors="replace"))

    def read(self, *parts):
        """Wait until it has shown these, or without any until it has ended; returns all that it has shown."""
        while not parts or any(part not in self.shown for part in parts):
            try:
                more = os.read(self._terminal, 65536)
            except OSError:  # the end, as Linux says it
                more = b""
            if not more:
                assert not parts, self.shown
                break
            self._written += more
        return self.shown


@pytest.fixture
def on_terminal(tmp_path, environment):
    """Start genarm on a terminal, in the same folder; it is killed at the end of the test."""
    with ExitStack() as stack:

        def start(*arguments, **settings):
            shape = {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
            command = [*COMMAND, *map(str, arguments)]
            terminal, side = pty.openpty()
            stack.callback(os.close, terminal)
            process = child(command, cwd=tmp_path, env=environment | shape | settings, stdout=side, stderr=side)
            with os.fdopen(side):
                return OnTerminal(stack.enter_context(process), terminal)

        yield start


@pytest.fixture
def prompts(tmp_path):
    """A file of good and bad rows."""
    rows = [{"id": "a", "prompt": "Hi"}, {"prompt": 3}, {"prompt": "long " * 400}, {"prompt": "Hey", "label": "x"}]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GENARM_DTYPE", "float32")
    return tmp_path


@pytest.fixture
def genarm_here(here):
    """Run a command in this process; its result."""
    return lambda *words: CliRunner().invoke(main, [str(word) for word in words], prog_name="genarm")


def facts(done):
    """The one object on stdout of a command that succeeded."""
    assert done.exit_code == 0, done.output
    (line,) = done.stdout.splitlines()
    return json.loads(line)
