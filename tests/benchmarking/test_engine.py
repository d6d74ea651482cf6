import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import engine, step_profile
from benchmarks.clock import OUTSIDE, Clock
from benchmarks.ours import OurEngine, Request
from benchmarks.workloads import WORKLOADS, Measured, Workload, in_turn, products_per_token
from models.engine import EngineSettings
from models.loading import describe

KEYS = ["workload", "what", "ours", "peer", "ratio", "bar", "at_most", "met", "spread"]


def printed(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.slow
def test_workloads_on_a_tiny_model_in_a_script_run_as_a_file(base, tmp_path):
    names = ["equal-16", "unguided", "samples", "lora-4", "efficiency-32", "overhead", "roofline-guided"]
    script = Path(engine.__file__).resolve()
    arguments = ["--base", str(base), "--home", str(tmp_path), "--device", "cpu", "--repeats", "1", "--json", "--only"]

    done = subprocess.run(
        [sys.executable, str(script), *arguments, *names],
        cwd=tmp_path, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip

    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["workload"] for one in found] == names, done.stderr
    assert all(list(one) == KEYS and one["ours"] > 0 for one in found)
    without_peer, *others = found
    assert (without_peer["peer"], without_peer["ratio"], without_peer["met"]) == (None, None, None)
    assert without_peer["bar"] == 0.8
    assert all(one["ratio"] == pytest.approx(one["ours"] / one["peer"], rel=2e-3) for one in others)
    assert all(0 < one["spread"]["ours"][0] <= one["ours"] <= one["spread"]["ours"][1] for one in found)
    assert next(one for one in found if one["workload"] == "overhead")["at_most"]
    assert done.returncode == int(any(one["met"] is False for one in found))


def test_an_unknown_workload_is_answered_with_those_that_there_are(base, capsys):
    with pytest.raises(SystemExit) as ended:
        engine.main(["--base", str(base), "--only", "lora"])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert "invalid choice: 'lora'" in error
    assert all(name in error for name in WORKLOADS)


@pytest.mark.parametrize("arguments", [["--base", "no/model"], ["--base", "{base}", "--device", "abacus"]])
def test_a_model_or_device_that_is_not_there_is_one_line(arguments, base, capsys):
    with pytest.raises(SystemExit) as ended:
        engine.main([one.format(base=base) for one in arguments])
    assert ended.value.code == 2
    assert "error: " in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(("bar", "at_most", "met", "code"), [
    (2.0, False, True, 0), (2.1, False, False, 1), (2.0, True, True, 0), (1.9, True, False, 1), (None, False, None, 0),
])  # fmt: skip
def test_a_missed_bar_ends_with_1_after_all_workloads(bar, at_most, met, code, base, monkeypatch, capsys):
    monkeypatch.setattr(engine, "_free", lambda: None)  # takes a second beside all the tests
    monkeypatch.setattr(engine, "WORKLOADS", {
        "first": Workload("4 against 2", lambda bench: Measured([3.0, 4.0, 6.0], [2.0]), bar, at_most),
        "second": Workload("no peer", lambda bench: Measured([1.0], None), 5.0),
    })  # fmt: skip
    assert engine.main(["--base", str(base), "--json"]) == code
    first, second = printed(capsys)
    assert (first["ratio"], first["met"], first["at_most"]) == (2.0, met, at_most)
    assert first["spread"] == {"ours": [3.0, 6.0], "peer": [2.0, 2.0]}
    assert second["met"] is None

    assert engine.main(["--base", str(base)]) == code
    rows = capsys.readouterr().out.splitlines()
    assert len({row.count("|") for row in rows}) == 1
    assert rows[2].startswith("| first | 4 against 2 | 4 (3 – 6) | 2 | 2 |")
    assert ("MISSED" in rows[2]) == (met is False)


def test_measurements_take_turns_after_one_to_warm_up():
    order = []

    def run(name: str, figures: list[float]):
        return lambda: order.append(name) or figures.pop(0)

    found = in_turn(2, run("ours", [9.0, 1.0, 2.0]), run("peer", [9.0, 3.0, 4.0]))
    assert found == [[1.0, 2.0], [3.0, 4.0]]
    assert order == ["ours", "peer"] * 3
    assert in_turn(1, run("ours", [5.0]), warm_up=False) == [[5.0]]


def test_the_bars_are_these():
    bars = {name: (one.bar, one.at_most) for name, one in WORKLOADS.items() if one.bar is not None}
    assert bars == {
        "equal-16": (0.8, False), "equal-64": (1.0, False), "equal-128": (0.9, False), "generate": (2.5, False),
        "uneven": (4.0, False), "long-prompt": (5.0, True), "samples": (4.0, False), "lora-4": (1.6, False),
        "lora-4-memory": (1.15, True), "efficiency-32": (0.95, False), "efficiency-64": (0.95, False),
        "overhead": (0.15, True),
    }  # fmt: skip


def test_our_time_begins_with_the_text(base, tmp_path, monkeypatch):
    ours = OurEngine(tmp_path, str(base), device="cpu")
    now = [0.0]
    submit = ours.engine.submit

    def tokenise(*arguments):
        now[0] += 1
        return submit(*arguments)

    monkeypatch.setattr(ours.engine, "submit", tokenise)
    monkeypatch.setattr("benchmarks.ours.time", SimpleNamespace(perf_counter=lambda: now[0]))
    assert ours.seconds([Request("a", 2), Request("b", 2)]) == 2


def test_a_step_that_a_graph_replays_counts_as_the_models(base, tmp_path, monkeypatch):
    def replayed(step):
        logits = step()
        return lambda: logits

    monkeypatch.setattr("models.backbone.capture_for", lambda device: replayed)
    settings = partial(EngineSettings, use_kernels=False, static_decode=True)
    monkeypatch.setattr("benchmarks.ours.EngineSettings", settings)
    ours = OurEngine(tmp_path, str(base), device="cpu", kv_cache_bytes=2**22)
    share = ours.share_outside_models([Request("abcd", 16)] * 4)
    assert 0 < share < 1


def test_a_clock_counts_what_is_inside_another_part_there(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("benchmarks.clock.time", SimpleNamespace(perf_counter=lambda: now[0]))

    def wait(seconds: float) -> None:
        now[0] += seconds

    parts = SimpleNamespace(outer=lambda: (wait(1), parts.inner(), wait(2)), inner=lambda: wait(4))
    clock = Clock()
    with clock.timing([(parts, "outer", "outer"), (parts, "inner", "inner")]):
        parts.outer()
        wait(8)
        assert clock.lap() == {OUTSIDE: 8, "outer": 3, "inner": 4}
        parts.inner()
    parts.outer()
    assert clock.lap() == {OUTSIDE: 7, "inner": 4}


@pytest.mark.parametrize("is_tied", [False, True])
def test_products_are_counted_by_weights(is_tied, base, tmp_path):
    config = describe(str(base), tmp_path).config
    config.tie_word_embeddings = is_tied
    inner, head = products_per_token(SimpleNamespace(config=config))
    layer = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 48
    assert (inner, head) == (3 * layer, 32 * config.vocab_size)


def test_the_profile_of_a_step_has_every_part(base, tmp_path, capsys):
    step_profile.main(["--base", str(base), "--home", str(tmp_path), "--rows", "4", "--waiting", "50"])
    table = capsys.readouterr().out
    assert all(f"| {part} |" in table for *_, part in step_profile.PARTS)
    assert f"| {OUTSIDE} |" in table
