"""The command line on a terminal of 80 columns: tables, progress, the Tab key; and `watch` in a pipe."""

import json
import subprocess
import tomllib
from pathlib import Path

import pytest

from db import shards
from tests.children import child
from tests.cli.conftest import COMMAND
from tests.results import filled
from worker.cli.doctor import EXTRAS
from worker.ledger import open_ledger
from worker.settings import Settings

AWAY = {"GENARM_DATABASE_URL": "postgresql://me@127.0.0.1:1/x"}


@pytest.fixture
def genarm(genarm_inside):
    """Commands run in this process: this file starts many."""
    return genarm_inside


@pytest.fixture
def ledger(tmp_path):
    """The embedded ledger of the folder in which commands run."""
    ledger = open_ledger(Settings(home=tmp_path / ".genarm"))
    yield ledger
    ledger.dispose()


def squeezed(text):
    """Without the spaces and line ends that folding puts in."""
    return "".join(text.split())


def finish(ledger, lease, job):
    """Give the rows of a lease their outcomes; the first row of the job fails."""
    rows = shards.pending_rows(ledger, lease)
    shards.write(ledger, [filled.outcome(lease, job, row, row.index == 0) for row in rows])
    assert shards.complete(ledger, [lease])


def test_the_doctor_gives_every_remedy_whole(genarm, on_terminal):
    found = [json.loads(line)["found"] for line in genarm("doctor", "--json", **AWAY).stdout.splitlines()]
    assert max(map(len, found)) > 80
    shown = on_terminal("doctor", **AWAY).read()
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown
    for text in found:  # in the last column, whose further lines have nothing beside them
        assert squeezed(text) in squeezed(shown)


def test_jobs_are_listed_and_shown_with_nothing_cut(ledger, on_terminal):
    name = "a long name of a job that tells what it is about and does not fit beside its numbers"
    sweep = {"helpful": [0.0, 0.5], "harmless": [0.0, 2.0]}
    rows = [{"prompt": "p", "weights": {"helpful": a, "harmless": b}} for a in (0.0, 0.5) for b in (0.0, 2.0)]
    job = filled.submit(ledger, rows, name=name, sweep=sweep)
    filled.fill(ledger, job)
    listed, shown = (on_terminal("job", *words).read() for words in (["list"], ["show", job.id]))
    for text in (listed, shown):
        assert max(map(len, text.splitlines())) <= 80
        assert "…" not in text
        assert job.id in text.split()
        assert set(name.split()) <= set(text.split())
    assert "helpful 0.5, harmless 2 " in shown


def test_the_front_of_a_sweep_is_plotted_for_people_alone(ledger, genarm, on_terminal):
    rows = [{"prompt": f"p{i}", "weights": {"helpful": w}} for i in range(10) for w in (0.0, 1.0, 5.0)]
    job = filled.submit(ledger, rows, sweep={"helpful": [0.0, 1.0, 5.0]})
    filled.fill(ledger, job)
    words = ("job", "show", job.id)
    front = json.loads(genarm(*words, "--json").stdout)["front"]
    shown, piped = on_terminal(*words).read(), genarm(*words).stdout
    chart = shown.partition("helpful per token (● on the front)")[2]
    assert chart.count("●") == sum(front["on_front"])
    assert chart.count("·") == 3 - sum(front["on_front"])
    kls = [f"{point['kl']:.3f}" for point in front["points"]]
    assert chart.split()[-3:] == ["KL", min(kls), max(kls)]
    assert "●" not in piped
    assert all(kl in piped for kl in kls)


def test_watch_shows_rows_speed_workers_and_what_is_left(ledger, on_terminal):
    job = filled.submit(ledger, [f"p{i}" for i in range(12)], shard_rows=4)
    watch = on_terminal("job", "watch", job.id)
    watch.read("0/12", "queued")
    first, second, third = filled.shard_ids(ledger, job)
    lease = shards.claim(ledger, first, "worker", 600)
    watch.read("in progress · 1 worker")
    finish(ledger, lease, job)
    held = shards.claim(ledger, second, "worker", 600), shards.claim(ledger, third, "another", 600)
    watch.read("4/12", "tokens/s · 2 workers · 1 failed", " so far · ", " left")
    for lease in held:
        finish(ledger, lease, job)
    assert f"{job.id} completed: 11 of 12 rows, 1 failed" in watch.read()
    assert watch.process.wait(30) == 3


def test_watch_tells_each_change_as_json(ledger, environment, tmp_path):
    job = filled.submit(ledger, [f"p{i}" for i in range(8)], shard_rows=4)
    command = [*COMMAND, "job", "watch", job.id, "--json"]
    with child(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as watch:
        told = [json.loads(watch.stdout.readline())]
        for shard_id in filled.shard_ids(ledger, job):
            lease = shards.claim(ledger, shard_id, "worker", 600)
            told.append(json.loads(watch.stdout.readline()))
            finish(ledger, lease, job)
            told.append(json.loads(watch.stdout.readline()))
        assert watch.stdout.read() == ""
        assert watch.wait(30) == 3
    assert [one["workers"] for one in told] == [0, 1, 0, 1, 0]
    assert [one["completed_rows"] + one["failed_rows"] for one in told] == [0, 0, 4, 4, 8]
    assert [one["status"] for one in told] == ["queued", *["in_progress"] * 3, "completed"]


def test_run_shows_the_job_as_it_runs(models, prompts, on_terminal):
    run = on_terminal("run", prompts, "-o", "out.jsonl", "--base", models / "base", "--max-new-tokens", "3")
    for part in ("4/4 rows", "2 failed", "completed", "so far"):
        run.read(part)
    run.read()
    assert run.process.wait(60) == 3


def test_a_report_to_stdout_with_facts_is_refused(ledger, genarm):
    job = filled.submit(ledger, ["p"])
    refused = genarm("job", "report", job.id, "-o", "-", "--json")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "give a file with -o" in refused.stderr


@pytest.fixture
def tab(tmp_path, environment):
    """What the Tab key offers for the id in `genarm job show job-`."""

    def tab(**settings):
        asked = {"_GENARM_COMPLETE": "zsh_complete", "COMP_WORDS": "genarm job show job-", "COMP_CWORD": "3"}
        command = [COMMAND[0], "-c", "from worker.cli import main; main(prog_name='genarm')"]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment | asked | settings, capture_output=True, text=True, check=True
        )
        assert done.stderr == ""
        return done.stdout.strip()

    return tab


def test_the_tab_key_knows_job_ids(ledger, tab, genarm):
    job = filled.submit(ledger, ["p"], name="nightly")
    offered = tab()
    assert job.id in offered
    assert "nightly" in offered
    assert "_GENARM_COMPLETE" in genarm("completion", "bash").stdout


@pytest.mark.parametrize("settings", [{}, AWAY, {"GENARM_DATABASE_URL": "mysql://x"}, {"GENARM_SHARD_ROWS": "many"}])
def test_the_tab_key_offers_nothing_and_makes_nothing_where_there_is_no_ledger(tab, tmp_path, settings):
    assert tab(**settings) == ""
    assert list(tmp_path.iterdir()) == []


def test_the_doctor_looks_for_every_extra_that_a_user_may_want():
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]["optional-dependencies"]
    (everything,) = project["all"]
    assert set(EXTRAS) == set(everything.partition("[")[2].rstrip("]").split(","))
