"""The process of vLLM, with a shell script in its place."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.vllm_peer import VllmPeer
from tests.children import child

STARTED = """
import sys, time

from benchmarks.vllm_peer import VllmPeer
with VllmPeer(sys.argv[1], "model", "float32", 1, 1) as peer:
    print(peer.seconds(["a"], 1), flush=True)
    {then}
"""


@pytest.fixture
def vllm(tmp_path: Path) -> Callable[[str], str]:
    """Makes a stand-in that has a process of its own, as vLLM has."""

    def make(then: str) -> str:
        script = tmp_path / "python"
        script.write_text(f"#!/bin/sh\nsleep 300 >/dev/null &\necho $$ $! > {tmp_path}/pids\n{then}\n")
        script.chmod(0o755)
        return str(script)

    return make


ANSWERS = """echo noise; echo '{"seconds": 0}'; while read _; do echo '{"seconds": 1.5}'; done; sleep 300"""


def states(folder: Path) -> list[str]:
    """The state of each process that the stand-in ran, by one letter; of those that are gone nothing."""
    found = []
    for pid in (folder / "pids").read_text().split():
        try:
            found.append(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0])
        except OSError:
            continue
    return [state for state in found if state != "Z"]


def wait_for(states_wanted: list[str], folder: Path) -> None:
    deadline = time.monotonic() + 30
    while states(folder) != states_wanted:
        assert time.monotonic() < deadline, states(folder)
        time.sleep(0.02)


def peer(python: str) -> VllmPeer:
    return VllmPeer(python, "model", "float32", 1, 1)


def test_it_is_stopped_unless_asked_and_ends_with_the_context(vllm, tmp_path):
    with peer(vllm(ANSWERS)) as asked:
        wait_for(["T", "T"], tmp_path)
        assert asked.seconds(["a"], 1) == 1.5
        wait_for(["T", "T"], tmp_path)
    wait_for([], tmp_path)


def test_it_ends_with_an_error(vllm, tmp_path):
    with pytest.raises(KeyboardInterrupt), peer(vllm(ANSWERS)):
        raise KeyboardInterrupt
    wait_for([], tmp_path)


def test_what_a_failed_start_left_is_ended(vllm, tmp_path):
    with pytest.raises(SystemExit, match="vLLM ended"), peer(vllm("exit 1")):
        pass
    wait_for([], tmp_path)


def test_it_ends_where_the_benchmark_is_killed(vllm, tmp_path):
    parent = child(
        [sys.executable, "-c", STARTED.format(then="time.sleep(300)"), vllm(ANSWERS)],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )  # fmt: skip
    with parent as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "1.5\n"
        wait_for(["T", "T"], tmp_path)
        process.send_signal(signal.SIGKILL)
    wait_for([], tmp_path)
