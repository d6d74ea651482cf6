"""Whole commands in processes of their own."""

import json
import subprocess
import sys

import click
import pytest

from worker.cli.main import main


@pytest.fixture
def genarm(genarm_inside):
    """Commands run in this process: this file starts many."""
    return genarm_inside


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_run_writes_a_row_for_every_row_and_keeps_them_in_sql(genarm, models, prompts, tmp_path):
    arguments = ["--base", models / "base", "--arm", models / "arm", "0.5", "--max-new-tokens", "6", "--seed", "3"]
    done = genarm("run", prompts, "-o", "out.jsonl", *arguments)
    assert done.returncode == 3, done.stderr
    rows = read(tmp_path / "out.jsonl")
    assert [row["error"] and row["error"]["code"] for row in rows] == [None, "invalid_prompt", "prompt_too_long", None]
    assert [row["id"] for row in rows] == ["a", 1, 2, 3]
    assert len(rows[0]["token_rewards"]["arm"]) == len(rows[0]["tokens"]) > 0
    assert rows[3]["label"] == "x"
    assert "Traceback" not in done.stderr

    (job,) = map(json.loads, genarm("job", "list", "--json").stdout.splitlines())
    assert (job["status"], job["completed_rows"], job["failed_rows"]) == ("completed", 2, 2)
    assert genarm("job", "export", job["id"], "-o", "-").stdout == (tmp_path / "out.jsonl").read_text()
    assert genarm("job", "watch", job["id"]).returncode == 3
    assert genarm("job", "delete", job["id"], "--yes").returncode == 0
    assert genarm("job", "show", job["id"]).returncode == 4


def test_submit_prints_the_id_alone_and_cancel_ends_the_job(genarm, models, prompts):
    submitted = genarm("job", "submit", prompts, "--base", models / "base")
    assert submitted.returncode == 0, submitted.stderr
    job_id = submitted.stdout.strip()
    assert job_id.startswith("job-")
    assert len(submitted.stdout.splitlines()) == 1
    assert genarm("job", "cancel", job_id).returncode == 0
    assert json.loads(genarm("job", "show", job_id, "--json").stdout)["status"] == "cancelled"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prompts.jsonl", "--base", "nowhere/at-all"], "nowhere/at-all"),
        (["prompts.jsonl", "--base", "{models}/base", "--arm", "{models}/stranger", "1"], "three"),
        (["prompts.jsonl", "--base", "{models}/base", "--arm", "{models}/arm", "heavy"], "the weight must be a number"),
        (
            ["prompts.jsonl", "--base", "{models}/base", "--arm", "a", "--sweep", "a=0,1"],
            "--arm a --sweep: the weight must",
        ),
        (["prompts.jsonl", "--base", "{models}/base", "--temperature", "-1"], "temperature"),
        (["none.jsonl", "--base", "{models}/base"], "no such file"),
        (["empty.jsonl", "--base", "{models}/base"], "has no rows"),
        (["other.jsonl", "--base", "{models}/base"], "its columns: text"),
    ],
)
def test_what_is_wrong_is_refused_in_a_line_with_nothing_written(genarm, models, prompts, tmp_path, arguments, message):
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "other.jsonl").write_text('{"text": "x"}\n')
    refused = genarm("job", "submit", *(argument.format(models=models) for argument in arguments))
    assert refused.returncode == 2, refused.stderr
    lines = [line for line in refused.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert refused.stdout == ""
    assert genarm("job", "list", "--json").stdout == ""


def test_listing_jobs_never_loads_torch(tmp_path):
    script = (
        "import sys\nfrom worker.cli import main\n"
        "try:\n    main(['job', 'list'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'transformers', 'peft'} & set(sys.modules)))"
    )
    environment = {"GENARM_HOME": str(tmp_path), "PYTHONPATH": "."}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip().endswith("[]")


def commands(command, path=()):
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            yield from commands(command.get_command(context, name), (*path, name))


def test_every_command_has_help_with_an_example():
    for path, command in commands(main):
        assert command.help, path
        assert "Example" in command.help, path
