"""`genarm run --key` goes on after any stop; a file is never replaced by a part that has fewer rows."""

import json
import os
import signal
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

import db.jobs
from tests.children import child
from tests.cli.conftest import COMMAND
from tests.results import filled
from worker.ledger import open_ledger
from worker.settings import Settings

ROWS = 40


@pytest.fixture
def ledger(tmp_path):
    """The embedded ledger of the folder in which commands run."""
    ledger = open_ledger(Settings(home=tmp_path / ".genarm"))
    yield ledger
    ledger.dispose()


@pytest.fixture
def dataset(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"id": index, "prompt": f"row {index}"}) + "\n" for index in range(ROWS)))
    return path


@pytest.fixture
def run_keyed(dataset, models, environment, tmp_path):
    """Start the same keyed command in a process group of its own; rows are slow enough to be stopped between them."""
    options = ["-o", "out.jsonl", "--base", models / "base", "--max-new-tokens", "60", "--ignore-eos", "--key", "k"]
    command = [*COMMAND, "run", str(dataset), *map(str, options)]
    slow = environment | {"GENARM_MAX_RUNNING": "1", "GENARM_SHARD_ROWS": "4"}

    def start():
        return stack.enter_context(child(command, cwd=tmp_path, env=slow, stderr=subprocess.PIPE, text=True))

    with ExitStack() as stack:
        yield start


def wait_for_rows(ledger, more_than):
    while True:
        jobs = db.jobs.list_jobs(ledger)
        if jobs and jobs[0].completed_rows > more_than:
            return jobs[0]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_same_command_goes_on_after_sigterm_a_lost_terminal_and_sigkill(ledger, run_keyed, tmp_path):
    (tmp_path / "out.jsonl").write_text("what was there\n" * ROWS)
    done = 0
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGKILL):
        run = run_keyed()
        wait_for_rows(ledger, done)
        run.send_signal(number)
        said = run.communicate(timeout=60)[1]
        (job,) = db.jobs.list_jobs(ledger)
        assert done < job.completed_rows < ROWS
        done = job.completed_rows
        assert (tmp_path / "out.jsonl").read_text() == "what was there\n" * ROWS
        if number != signal.SIGKILL:
            assert run.returncode == 130
            assert "the same command goes on" in said
    run = run_keyed()
    assert run.wait(120) == 0
    assert [json.loads(line)["id"] for line in (tmp_path / "out.jsonl").open()] == list(range(ROWS))


def test_a_part_of_a_job_does_not_replace_a_file_with_more_rows(ledger, genarm, tmp_path):
    job = filled.submit(ledger, [f"p{i}" for i in range(6)], samples=1, shard_rows=2)
    filled.fill(ledger, job, shards_at_most=2)
    for name, text in (("out.jsonl", '{"id": 1}\n' * 5), ("out.csv", "id\n" + "1\n" * 5)):
        (tmp_path / name).write_text(text)
        refused = genarm("job", "export", job.id, "-o", name)
        assert refused.returncode == 2, refused.stderr
        assert f"{name}: has 5 rows and stays as it is, since 2 of the 6 rows of {job.id}" in refused.stderr
        assert (tmp_path / name).read_text() == text
        (tmp_path / name).write_text(text.removesuffix("1\n").removesuffix('{"id": 1}\n'))
        assert genarm("job", "export", job.id, "-o", name).returncode == 0


def latin(environment):
    return environment | {"PYTHONIOENCODING": "latin-1", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


def test_output_is_utf8_whatever_the_locale_says(ledger, environment, tmp_path):
    job = filled.submit(ledger, [{"id": "é", "prompt": "café 😀"}], samples=1, name="naïve 漢字")
    filled.fill(ledger, job)
    for words in (["job", "list"], ["run", "--help"], ["job", "export", job.id, "-o", "-"]):
        done = subprocess.run(
            [*COMMAND, *words], cwd=tmp_path, env=latin(environment), capture_output=True, check=False
        )
        assert (done.returncode, b"Traceback" in done.stderr) == (0, False), done.stderr
        assert {"list": "naïve 漢字", "--help": "α/β", "-": "café 😀"}[
            words[1] if words[-1] == "list" else words[-1]
        ] in (done.stdout.decode())
    refused = subprocess.run(
        [*COMMAND, "job", "show", "ж😀"], cwd=tmp_path, env=latin(environment), capture_output=True, check=False
    )
    assert refused.stderr.decode().startswith("Error: there is no job")


@pytest.mark.parametrize("words", [["run", "--help"], ["job", "export", "JOB", "-o", "-"]])
def test_a_full_disk_behind_stdout_is_a_line_and_a_closed_one_is_quiet(ledger, environment, tmp_path, words):
    job = filled.submit(ledger, ["p"])
    filled.fill(ledger, job)
    words = [job.id if word == "JOB" else word for word in words]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, *words],
            cwd=tmp_path,
            env=environment,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("Error: ") and "the disk is full" in done.stderr
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr
    reader, writer = os.pipe()
    os.close(reader)
    quiet = subprocess.run(
        [*COMMAND, *words], cwd=tmp_path, env=environment, stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)
    assert (quiet.returncode, quiet.stderr) == (1, "")


def test_a_misspelt_variable_is_said_and_the_doctor_fails(genarm):
    listed = genarm("job", "list", GENARM_MAX_RUNING="3")
    assert listed.returncode == 0
    assert listed.stderr == "Warning: GENARM_MAX_RUNING is no setting; did you mean GENARM_MAX_RUNNING?\n"
    found = [json.loads(line) for line in genarm("doctor", "--json", GENARM_MAX_RUNING="3").stdout.splitlines()]
    assert [row["found"] for row in found if not row["ok"]] == [listed.stderr.strip().removeprefix("Warning: ")]


def test_the_doctor_names_every_faulty_setting_without_its_secret(genarm):
    faulty = {"GENARM_BROKER_URL": "redis://:hunter2#x@h", "GENARM_DATABASE_URL": "mysql://u:hunter2@h/x"}
    done = genarm("doctor", "--json", GENARM_SHARD_ROWS="hunter2", **faulty)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 1
    assert {row["found"].partition(":")[0] for row in found} == {*faulty, "GENARM_SHARD_ROWS"}
    assert "hunter2" not in done.stdout + done.stderr


@pytest.mark.parametrize("command", [["up"], ["run", "rows.jsonl", "-o", "-"]])
def test_a_home_that_cannot_be_made_is_a_line(genarm, models, dataset, tmp_path, command):
    (tmp_path / "file").touch()
    base = ["--base", models / "base"] if command[0] == "run" else []
    refused = genarm(*command, *base, GENARM_HOME=tmp_path / "file" / "home")
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith(
        f"Error: the home folder {tmp_path / 'file' / 'home'} cannot be made"
    )
    assert "Traceback" not in refused.stderr
