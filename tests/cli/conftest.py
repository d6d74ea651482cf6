"""The command line as people type it, with tiny models and everything embedded."""

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from click.testing import CliRunner

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
            cwd=tmp_path, env=environment | settings, input=stdin, capture_output=True, text=True, timeout=120,
            check=False,
        )  # fmt: skip

    return run


@pytest.fixture
def start_genarm(tmp_path, environment):
    """Start genarm in the same folder and leave it running; it is killed at the end of the test."""
    with ExitStack() as stack:

        def start(*arguments, **settings):
            process = stack.enter_context(
                subprocess.Popen(
                    [*COMMAND, *arguments],
                    cwd=tmp_path,
                    env=environment | settings,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            stack.callback(process.kill)
            return process

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
