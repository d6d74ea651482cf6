"""Every example in the help of every command, run as it is written there."""

import json
import re
import shlex
import signal
import subprocess

import click
import pytest
from click.testing import CliRunner

from db import jobs
from tests.children import child
from tests.cli.conftest import COMMAND
from tests.results import filled
from worker.cli.main import main
from worker.ledger import open_ledger
from worker.settings import Settings

EXAMPLE_ID = "job-1m86dg0"
RUNS_ON = ("genarm up", "genarm worker --base HuggingFaceTB/SmolLM2-135M-Instruct --concurrency 4")
"""Examples that end by a signal."""
ASKS_A_WORKER = "genarm health"
"""Run by tests/deployment."""


def commands(command, path=("genarm",)):
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            yield from commands(command.get_command(context, name), (*path, name))


def examples(command):
    return re.findall(r"^ +(?:[A-Z_]+=\S+ )*(genarm .*)$", command.help or "", re.MULTILINE)


ALL = [example for _, command in commands(main) for example in examples(command)]


def test_every_command_has_an_example_of_itself():
    for path, command in commands(main):
        found = examples(command)
        assert found, path
        assert isinstance(command, click.Group) or all(example.startswith(" ".join(path)) for example in found), path


@pytest.fixture
def place(models, tmp_path, monkeypatch):
    """A folder with everything that the examples name, and a job that is done."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GENARM_HOME", str(tmp_path / ".genarm"))
    monkeypatch.setenv("GENARM_DTYPE", "float32")
    for name, model in (
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "base"),
        ("examples/arms/positive", "arm"),
        ("model", "base"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(models / model)
    rows = [{"id": f"r{i}", "prompt": f"Hi {i}", "response": "Hey"} for i in range(2)]
    pairs = [{"prompt": f"q{i}", "chosen": "yes", "rejected": "no"} for i in range(4)]
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
    batch = {"custom_id": "one", "method": "POST", "url": "/v1/chat/completions", "body": body}
    files = {"prompts.jsonl": rows, "pairs.jsonl": pairs, "heldout.jsonl": pairs, "batch.jsonl": [batch]}
    files["responses.jsonl"] = rows
    for name, content in files.items():
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in content))
    (tmp_path / "reviews.csv").write_text("text\nIt was fine\n")
    ledger = open_ledger(Settings())
    job = filled.submit(ledger, ["a", "b"])
    filled.fill(ledger, job)
    yield job
    ledger.dispose()


@pytest.mark.parametrize("example", [example for example in ALL if example not in (*RUNS_ON, ASKS_A_WORKER)])
def test_an_example_works(place, example):
    words = [word.replace(EXAMPLE_ID, place.id) for word in shlex.split(example)]
    if "run" in words[:2]:
        words += ["--max-new-tokens", "3"]
    done = CliRunner().invoke(main, words[1:], prog_name="genarm")
    assert done.exit_code == 0, done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)


@pytest.mark.parametrize("example", RUNS_ON)
def test_an_example_that_runs_on_ends_when_told_to(place, example, broker_url, environment, tmp_path):
    settings = {"GENARM_HOME": str(tmp_path / ".genarm")}
    settings |= {} if example == "genarm up" else {"GENARM_BROKER_URL": broker_url, "GENARM_ALLOW_ANY_MODEL": "true"}
    command = [*COMMAND, *shlex.split(example)[1:]]
    with child(
        command, env=environment | settings, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True
    ) as process:
        output = []
        for line in process.stdout:
            output.append(line)
            if "ready" in line.lower():
                break
        process.send_signal(signal.SIGINT if example == "genarm up" else signal.SIGTERM)
        rest = process.stdout.read()
        assert process.wait(30) in (0, 130), "".join(output) + rest
        assert "Traceback" not in rest


def test_every_command_that_tells_facts_can_tell_them_as_json(place, tmp_path):
    silent = {("genarm", "worker"), ("genarm", "completion"), ("genarm", "health")}  # health speaks JSON alone
    for path, command in commands(main):
        if not isinstance(command, click.Group) and path not in silent:
            assert any("--json" in parameter.opts for parameter in command.params), path

    def run(*words):
        done = CliRunner().invoke(main, words)
        assert done.exit_code == 0, done.output
        return [json.loads(line) for line in done.stdout.splitlines()]

    job = place.id
    (submitted,) = run("job", "submit", "prompts.jsonl", "--base", "model", "--json")
    assert submitted["rows"] == 2
    assert run("job", "cancel", submitted["id"], "--json")[0]["status"] == "cancelled"
    assert run("job", "retry", submitted["id"], "--json")[0]["rows"] == 2
    assert [one["id"] for one in run("job", "list", "--json")] == [submitted["id"], job]
    assert run("job", "show", job, "--json")[0]["completed_rows"] == 2
    assert run("job", "watch", job, "--json")[0]["status"] == "completed"
    assert run("job", "export", job, "-o", "out.csv", "--json")[0] == {
        "id": job, "file": "out.csv", "rows": 4, "skipped": 0,
    }  # fmt: skip
    assert run("job", "report", job, "-o", "out.html", "--json")[0]["completions"] == 4
    assert run("job", "delete", job, "--yes", "--json") == [{"id": job, "deleted": True}]
    assert run("db", "current", "--json")[0]["revision"] == run("db", "upgrade", "--json")[0]["newest"]
    assert jobs.find(open_ledger(Settings()), submitted["id"]).status == "queued"
