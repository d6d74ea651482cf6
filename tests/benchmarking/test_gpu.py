"""The checks of a GPU walk the same paths on a CPU, and one that dies spares the others."""

import importlib
import json
import os
import subprocess
import sys
from argparse import Namespace

import pytest
import torch

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import device, exactness, faults
from benchmarks.gpu.report import Finding
from models.backbone import Backbone
from models.sampling import _first_above


@pytest.fixture
def found():
    return []


@pytest.fixture
def note(found):
    return lambda name, is_ok, text, figures: found.append(Finding("check", name, is_ok, text, figures))


@pytest.mark.parametrize(
    ("check", "names"),
    [
        (faults.nan_row, ["a row of NaN", "the rows beside it"]),
        (faults.failed_capture, ["a step that waits", "the next capture"]),
        (faults.out_of_memory, ["too little memory"]),
    ],
    ids=lambda one: getattr(one, "__name__", None),
)
def test_faults_cost_no_more_than_they_have_to(check, names, tmp_path, note, found):
    check(tmp_path, "cpu", True, note)
    assert [one.name for one in found] == names
    assert all(one.is_ok for one in found), found


def test_every_mode_gives_the_cpus_tokens(tmp_path, note, found, monkeypatch):
    monkeypatch.setattr(exactness, "FAMILIES", ["gemma3"])
    exactness.exactness(tmp_path, "cpu", True, note)
    assert [one.name.split(" ")[0] for one in found] == ["gemma3,"] * 5
    assert all(one.is_ok and one.figures["tokens"] == 84 for one in found), found
    assert "preempted 0" not in found[-1].name


def test_what_is_wrong_is_found(tmp_path, note, found, monkeypatch):
    """Tokens drawn from other logits, rows of NaN that break their step, and memory that shrinks nothing."""
    run = Backbone.run

    def worse(backbone, chunks):
        logits, wanting = run(backbone, chunks)
        return logits * (1 + 0.2 * len(chunks)), wanting

    monkeypatch.setattr(exactness, "FAMILIES", ["llama"])
    with monkeypatch.context() as patch:
        patch.setattr(Backbone, "run", worse)
        exactness.exactness(tmp_path, "cpu", True, note)
    assert "4 at once" in " ".join(one.name for one in found if one.is_ok is False)
    found.clear()
    unclamped = lambda sums, targets: torch.searchsorted(sums, targets[:, None], right=True)[:, 0]  # noqa: E731
    monkeypatch.setattr(f"{_first_above.__module__}.{_first_above.__name__}", unclamped)
    faults.nan_row(tmp_path, "cpu", True, note)
    assert [one.is_ok for one in found] == [False, True]


def test_figures(tmp_path, note, found):
    device.floors(tmp_path, "cpu", True, note)
    device.new_shapes(tmp_path, "cpu", True, note)
    device.waits(tmp_path, "cpu", True, note)
    assert len(found) == 3
    assert all(one.is_ok is None and min(one.figures.values()) > 0 for one in found)


@pytest.mark.slow
def test_a_call_prints_what_it_finds_and_keeps_it_as_json(tmp_path):
    results = tmp_path / "results" / "gpu.json"
    arguments = ["--only", "failed_capture", "--quick", "--results", str(results)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *arguments, "--device", "cpu"],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "ok   failed_capture" in done.stdout
    assert [one["check"] for one in json.loads(results.read_text())] == ["failed_capture"] * 2


def test_a_process_that_dies_or_hangs_is_a_finding(tmp_path, monkeypatch):
    options = Namespace(device="cpu", quick=True)

    def python(script):
        program = tmp_path / "python"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(program))
        return [one.line() for one in gpu.run_apart("waits", options, 1)]

    finding = Finding("waits", "one", True, "seen", {"a": 1.0})
    died, hung = f"echo '{finding.json()}'; echo noise; echo 'CUDA error: assert' >&2; exit 134", "exec sleep 60"
    assert python(died) == [finding.line(), Finding("waits", "ended", False, "exit 134: CUDA error: assert").line()]
    assert python(hung) == [Finding("waits", "ended", False, "exit -9: took more than 1 s").line()]


def test_what_there_is_no_time_for_fails(monkeypatch):
    monkeypatch.setattr(gpu, "run_apart", lambda *args: pytest.fail("it has no time"))
    found = list(gpu.findings(Namespace(device="cuda", quick=False, seconds=1e-9, only=["waits"])))
    assert [one.line() for one in found] == [Finding("waits", "left out", False, "there was no time for it").line()]


def test_every_check_is_there():
    for name, (module, seconds) in gpu.CHECKS.items():
        assert callable(getattr(importlib.import_module(f"benchmarks.gpu.{module}"), name))
        assert seconds > 0
