"""Tests end: their processes are killed, their threads are left behind, and interrupts reach the processes."""

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.children import child

SLEEPS = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
LEFT_TO_THE_BACKGROUND = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGQUIT, signal.SIG_IGN)
os.execv(sys.executable, [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", sys.argv[1]])
"""
ASKS_A_CHILD = """
import subprocess, sys
from tests.conftest import pytest_configure
ASK = "import signal; print(signal.getsignal(signal.SIGINT).__name__, signal.getsignal(signal.SIGQUIT).name)"

def test_what_a_child_does_with_interrupts():
    done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True)
    assert done.stdout == "default_int_handler SIG_DFL\\n", done.stdout + done.stderr
"""


def test_a_child_that_ignores_interrupts_ends_with_its_block():
    with pytest.raises(RuntimeError), child([sys.executable, "-c", SLEEPS], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"up\n"
        process.send_signal(signal.SIGINT)
        raise RuntimeError
    assert process.returncode == -signal.SIGKILL


def test_a_suite_in_the_background_of_a_script_can_interrupt_its_children(tmp_path):
    (tmp_path / "conftest.py").write_text("from tests.conftest import pytest_configure\n")
    (tmp_path / "test_it.py").write_text(ASKS_A_CHILD)
    done = subprocess.run(
        [sys.executable, "-c", LEFT_TO_THE_BACKGROUND, "test_it.py"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(Path.cwd())}, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def calls(name):
    """Calls of a function of this name in tests, each with the file."""
    for path in sorted(Path("tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == name:
                yield path, node


def test_every_process_of_a_test_is_a_child_that_is_killed():
    assert {str(path) for path, _ in calls("Popen")} == {"tests/children.py"}


@pytest.mark.parametrize("name", ["Thread", "Process"])
def test_no_thread_or_process_of_a_test_keeps_the_suite_from_ending(name):
    found = list(calls(name))
    assert found
    for path, call in found:
        daemon = [word.value for word in call.keywords if word.arg == "daemon"]
        assert daemon and ast.literal_eval(daemon[0]) is True, f"{path}:{call.lineno}"
