"""Results through the command line: files that go in again, exports that cannot be or are cut short."""

import csv
import json
import os
import select
import signal
import subprocess
import time

import pandas as pd
import pytest

import db.jobs
from tests.results import filled
from worker.ledger import open_ledger
from worker.settings import Settings


@pytest.fixture
def genarm(genarm_inside):
    """Commands run in this process: this file starts many."""
    return genarm_inside


def test_a_csv_of_run_can_be_scored_with_nothing_lost(genarm, models, tmp_path):
    rows = [{"id": f"old {i}", "key": f"k{i}", "prompt": f"Hi {i}"} for i in range(2)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arm = ["--arm", models / "arm"]
    options = ["--base", models / "base", "--max-new-tokens", "3", "--id-column", "key"]
    ran = genarm("run", "rows.jsonl", "-o", "out.csv", *options, *arm, "1")
    assert ran.returncode == 0, ran.stderr
    scored = genarm("score", "out.csv", "-o", "again.csv", "--response-column", "completion", *arm)
    assert scored.returncode == 0, scored.stderr
    before, after = (pd.read_csv(tmp_path / name).to_dict("records") for name in ("out.csv", "again.csv"))
    assert [row["input_rewards.arm"] for row in after] == [row["rewards.arm"] for row in before]
    assert [(row["id"], row["input_id"]) for row in after] == [("k0", "old 0"), ("k1", "old 1")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-o", "out.jsonl", "--as", "preference"], "--samples 2 or more"),
        (["-o", "out.jsonl", "--as", "preference", "-n", "2", "--by", "typo"], "--by typo: is no ARM of the job"),
        (["-o", "out.jsonl", "--as", "sft", "--output-format", "openai"], "leave out --as"),
        (["-o", "out.jsonl", "--output-format", "openai", "--sweep", "arm=0,1"], "is a sweep"),
        (["-o", "nowhere/out.jsonl"], "there is no folder nowhere"),
    ],
)
def test_an_export_that_cannot_be_is_refused_before_the_work(genarm_here, models, prompts, options, message):
    arm = ["--arm", models / "arm", "1"]
    refused = genarm_here("run", prompts, "--base", models / "base", *arm, *options)
    assert refused.exit_code == 2, refused.output
    assert message in refused.stderr
    assert genarm_here("job", "list", "--json").stdout == ""


def test_a_job_without_arms_has_nothing_to_choose_by(genarm_here, models, prompts):
    refused = genarm_here("run", prompts, "-o", "out.jsonl", "--base", models / "base", "--as", "sft", "-n", "2")
    assert refused.exit_code == 2
    assert "has no ARM" in refused.stderr


@pytest.mark.parametrize("option", [["--as", "preference"], ["--by", "arm"], ["--per-token"]])
def test_score_has_no_samples_to_choose_among(genarm_here, models, prompts, option):
    refused = genarm_here("score", prompts, "-o", "out.jsonl", "--arm", models / "arm", *option)
    assert refused.exit_code == 2
    assert "No such option" in refused.stderr


@pytest.fixture
def ledger(tmp_path):
    """The ledger of the commands."""
    ledger = open_ledger(Settings(home=tmp_path / ".genarm"))
    yield ledger
    ledger.dispose()


def test_an_export_says_what_it_lacks(genarm_here, ledger):
    job = filled.submit(ledger, [f"p{i}" for i in range(1200)], samples=1, shard_rows=400)
    filled.fill(ledger, job, shards_at_most=1)
    export = ["job", "export", job.id, "-o", "out.jsonl"]
    assert "400 of 1,200 rows have an outcome; --follow waits for the rest" in genarm_here(*export).stderr
    db.jobs.cancel(ledger, job.id)
    for follow in ([], ["--follow"]):
        lacking = genarm_here(*export, *follow)
        assert "400 of 1,200 rows have an outcome\n" in lacking.stderr
    db.jobs.retry_failed(ledger, job.id)
    filled.fill(ledger, job)
    assert "have an outcome" not in genarm_here(*export).stderr


def first_lines(pipe, count):
    """The lines that a process has written, once there are so many."""
    written = b""
    while written.count(b"\n") < count:
        readable, _, _ = select.select([pipe], [], [], 30)
        assert readable, written
        written += os.read(pipe.fileno(), 65536)
    return written.decode().splitlines()


@pytest.mark.parametrize("file_format", ["jsonl", "csv"])
def test_followed_rows_come_out_while_the_job_runs(ledger, start_genarm, file_format):
    job = filled.submit(ledger, [f"p{i}" for i in range(6)], samples=1, shard_rows=2)
    filled.fill(ledger, job, shards_at_most=1)
    words = ["job", "export", job.id, "-o", "-", "--format", file_format, "--follow"]
    export = start_genarm(*words, stdout=subprocess.PIPE, PYTHONUNBUFFERED="")
    headers = 1 if file_format == "csv" else 0
    lines = first_lines(export.stdout, headers + 2)
    assert export.poll() is None
    assert db.jobs.progress(ledger, job.id).pending_rows == 4
    filled.fill(ledger, job)
    lines += export.stdout.read().splitlines()
    assert export.wait(60) == 0
    rows = list(map(json.loads, lines)) if file_format == "jsonl" else list(csv.DictReader(lines))
    assert [str(row["id"]) for row in rows] == list("012345")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_export_that_is_stopped_leaves_the_old_file_and_nothing_else(ledger, start_genarm, tmp_path, number):
    job = filled.submit(ledger, ["a", "b"], shard_rows=1)
    filled.fill(ledger, job, shards_at_most=1)
    (tmp_path / "out.jsonl").write_text("old")
    export = start_genarm("job", "export", job.id, "-o", "out.jsonl", "--follow")
    while not list(tmp_path.glob(".out.jsonl.*.part")):
        assert export.poll() is None
        time.sleep(0.02)
    export.send_signal(number)
    assert export.wait(30) == 130
    assert export.stderr.read() == "Interrupted.\n"
    assert (tmp_path / "out.jsonl").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == ["out.jsonl"]
