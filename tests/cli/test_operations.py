"""The commands around jobs: training, servers, migrations, the doctor."""

import json
import os
import re
import signal

import pytest
from click.testing import CliRunner
from peft import PeftModel
from transformers import AutoModelForCausalLM

from models.native import build, choice
from tests.tiny_models import make_adapter
from worker import serving
from worker.cli.main import main


def test_arm_train_writes_an_adapter_that_peft_loads_and_genarm_runs(genarm, models, prompts, tmp_path):
    rows = [{"prompt": f"q{n}", "chosen": "yes " * (1 + n % 3), "rejected": "no " * (1 + n % 2)} for n in range(12)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--base", models / "base", "--eval-fraction", "0.25", "--batch", "4", "--about", "Prefers yes."]
    trained = genarm("arm", "train", "pairs.jsonl", *options, "-o", "arm", "--lr", "0.01", "--seed", "7")
    assert trained.returncode == 0, trained.stderr
    assert "9 pairs for training, 3 held out" in trained.stderr
    assert "held-out accuracy" in trained.stderr
    assert "step 3 of 3: loss" in trained.stderr  # no terminal, no bars
    card = (tmp_path / "arm" / "README.md").read_text()
    assert "genarm arm train pairs.jsonl --base base --eval-fraction 0.25" in card  # no folders of this machine
    assert "Prefers yes." in card
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(models / "base"), tmp_path / "arm")
    arguments = ["-o", "-", "--base", models / "base", "--arm", "arm", "1", "--max-new-tokens", "2"]
    assert '"token_rewards": {"arm": [' in genarm("run", prompts, *arguments).stdout


def test_arm_train_names_bad_pairs_and_refuses_a_file_that_has_no_other(genarm, models, tmp_path):
    good, bad = '{"prompt": "a", "chosen": "b", "rejected": "c"}\n', '{"prompt": "a"}\n'
    (tmp_path / "mixed.jsonl").write_text(good + bad)
    options = ["--base", models / "base", "--lora-rank", "1", "-o"]
    trained = genarm("arm", "train", "mixed.jsonl", *options, "mixed")
    assert "mixed.jsonl, line 2: malformed: `chosen` is missing" in trained.stderr
    assert "Warning" not in trained.stderr
    (tmp_path / "bad.jsonl").write_text(good.replace('"c"', '"b"'))
    refused = genarm("arm", "train", "bad.jsonl", *options, "arm")
    assert refused.returncode == 2
    assert refused.stderr.startswith("Error: ") and "line 1" in refused.stderr
    assert not (tmp_path / "arm").exists()


def test_up_serves_jobs_until_it_is_interrupted(genarm, start_genarm, models, tmp_path):
    (tmp_path / "one.jsonl").write_text('{"prompt": "Hi"}\n')
    up = start_genarm("up")
    assert up.stderr.readline().startswith("Ready"), up.stderr.read()
    submitted = genarm("job", "submit", "one.jsonl", "--base", models / "base", "--max-new-tokens", "3")
    watched = genarm("job", "watch", submitted.stdout.strip())
    assert watched.returncode == 0, watched.stderr
    up.send_signal(signal.SIGINT)
    assert up.wait(30) in (0, 130)
    assert "Traceback" not in up.stderr.read()
    assert not (tmp_path / ".genarm" / "redis.sock").exists()


def test_db_commands_bring_the_schema_up_and_down(genarm):
    assert genarm("db", "current").stdout == "none\n"
    assert genarm("db", "upgrade").returncode == 0
    head = genarm("db", "current").stdout
    assert head != "none\n"
    for answer in ("n\n", ""):
        declined = genarm("db", "downgrade", "base", stdin=answer)
        assert declined.returncode == 1
        assert declined.stderr.endswith("Nothing was changed.\n")
    assert genarm("db", "current").stdout == head
    assert genarm("db", "downgrade", "base", "--yes").returncode == 0
    assert genarm("db", "current").stdout == "none\n"


def test_the_doctor_finds_nothing_wrong_where_nothing_is_and_names_what_is(genarm):
    healthy = genarm("doctor")
    assert (healthy.returncode, healthy.stderr) == (0, "")  # libraries that models import keep quiet
    findings = genarm(
        "doctor", "--json", GENARM_DATABASE_URL="postgresql://me:secret@127.0.0.1:1/x", GENARM_BROKER_URL="redis://:secret@127.0.0.1:1"
    )  # fmt: skip
    assert findings.returncode == 1
    wrong = {row["check"] for row in map(json.loads, findings.stdout.splitlines()) if not row["ok"]}
    assert wrong == {"database", "redis", "models"}
    assert "secret" not in findings.stdout + findings.stderr


@pytest.fixture
def kernels_found(genarm_here, monkeypatch, tmp_path):
    """What the doctor says of kernels that nobody has compiled yet, and its exit code."""
    monkeypatch.setattr(build, "folder", lambda: tmp_path)
    monkeypatch.setattr(choice, "folder", lambda: tmp_path)

    def found():
        done = genarm_here("doctor", "--json")
        (row,) = [row for row in map(json.loads, done.stdout.splitlines()) if row["check"] == "kernels"]
        return row["found"], done.exit_code

    return found


def test_the_doctor_says_whether_the_kernels_are_compiled_and_what_to_do(kernels_found, monkeypatch):
    found, code = kernels_found()
    assert found.startswith("not compiled yet") and build.instruction_set() in found and build.find_compiler() in found
    assert code == 0
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    found, code = kernels_found()
    assert "apt-get install gcc" in found and "GENARM_KERNELS=torch" in found
    assert code == 0
    monkeypatch.setenv("GENARM_KERNELS", "native")
    assert kernels_found() == (found, 1)
    monkeypatch.setenv("GENARM_KERNELS", "torch")
    assert kernels_found() == ("not used: GENARM_KERNELS=torch", 0)


def assert_log_tells_what_was_done(log, base, arm):
    """The events in their order, and nothing of libraries: no warning, no progress bar."""
    events = [
        r"models run on cpu with (our kernels|PyTorch's operations), in float32 ",
        rf"the first shard of job-\w+: base {base}, ARMs arm, lora \[job=job-\w+ shard=\d+\]",
        rf"loading {base}: \d+\.\d KiB in float32 to cpu",
        rf"loaded {base} in \d+\.\d s, with a KV cache of \d+\.\d GiB",
        rf"loading {arm}: ",
        rf"loaded {arm} in ",
        rf"attached the adapter \S+lora to {base}: \d+\.\d KiB",
        r"shard \d+ of job-\w+: 4 rows",
    ]
    assert re.search(".*".join(f"INFO [^\n]*{event}" for event in events), log, re.DOTALL), log
    assert "%|" not in log
    assert [line for line in log.splitlines() if "Warning" in line and "SecurityWarning" not in line] == []


@pytest.fixture
def new_machine(tmp_path):
    """The environment of a machine that has compiled nothing yet; its compiler optimises nothing, to be quick."""
    compiler = tmp_path / "bin" / "cc"
    compiler.parent.mkdir()
    compiler.write_text(f'#!/bin/sh\nexec {build.find_compiler()} "$@" -O0\n')
    compiler.chmod(0o755)
    path = f"{compiler.parent}{os.pathsep}{os.environ['PATH']}"
    return {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PATH": path}


def test_commands_tell_that_the_kernels_are_compiled_and_the_log_what_the_worker_does(
    genarm, new_machine, models, prompts, tmp_path
):
    make_adapter(tmp_path / "lora", models / "base")
    words = ["--base", models / "base", "--arm", models / "arm", "1", "--arm", "lora", "1", "--max-new-tokens", "3"]
    run = genarm("run", prompts, "-o", "out.jsonl", *words, **new_machine)
    assert run.returncode == 3, run.stderr
    assert_log_tells_what_was_done((tmp_path / ".genarm" / "worker.log").read_text(), models / "base", models / "arm")
    told = [line for line in run.stderr.splitlines() if "compil" in line or "measur" in line]
    assert [line.split()[0] for line in told] == ["compiling", "compiled", "measuring", "measured"]
    assert told[0].endswith("once for this machine (about 20 s)")
    assert all(line in (tmp_path / ".genarm" / "worker.log").read_text() for line in told)

    asked = {"GENARM_DTYPE": "auto", **new_machine}
    check = genarm("arm", "check", models / "base", models / "arm", "--max-new-tokens", "2", **asked)
    assert (check.returncode, check.stderr) == (0, "")  # both are kept
    anew = genarm("doctor", "--measure", **asked)
    measuring, measured = anew.stderr.splitlines()
    assert measuring.startswith("measuring")
    assert measured.removeprefix("measured ") in anew.stdout


def test_a_worker_that_runs_with_kernels_that_cannot_be_had_does_not_start(genarm, models, prompts, tmp_path):
    settings = {"GENARM_KERNELS": "native", "PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    refused = genarm("run", prompts, "-o", "out.jsonl", "--base", models / "base", **settings)
    assert refused.returncode != 0
    assert "Error: " in refused.stderr and "apt-get install gcc" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_job_whose_base_no_worker_serves_says_what_it_waits_for(
    genarm, start_genarm, models, prompts, redis_client, broker_url, monkeypatch, tmp_path
):
    monkeypatch.setattr(serving, "SAID_SECONDS", 3600.0)  # several commands long
    shared = {"GENARM_BROKER_URL": broker_url, "GENARM_ALLOW_ANY_MODEL": "true"}

    def ask(*words):
        return CliRunner().invoke(main, words, env=shared | {"GENARM_HOME": str(tmp_path / ".genarm")})

    serving.say(redis_client, ["another"])
    submitted = genarm("job", "submit", prompts, "--base", models / "base", **shared)
    assert submitted.returncode == 0, submitted.stderr
    job_id, wanted = submitted.stdout.strip(), f"genarm worker --base {models / 'base'}"
    assert wanted in submitted.stderr
    assert json.loads(ask("job", "show", job_id, "--json").stdout)["is_served"] is False
    assert "waits for" in ask("job", "show", job_id).stdout
    watch = start_genarm("job", "watch", job_id, **shared)
    assert wanted in watch.stderr.readline()
    ill = ask("doctor", "--json")
    (workers,) = [row for row in map(json.loads, ill.stdout.splitlines()) if row["check"] == "workers"]
    assert (ill.exit_code, workers["ok"]) == (1, False)
    assert workers["found"].startswith("serve another; 1 job waits for a worker that serves ")
    assert wanted in workers["found"]
    assert not list(redis_client.scan_iter("genarm\x06*"))

    serving.say(redis_client, [str(models / "base")])
    assert json.loads(ask("job", "show", job_id, "--json").stdout)["is_served"] is True
    assert ask("doctor").exit_code == 0
    ask("job", "cancel", job_id)
    assert json.loads(ask("job", "show", job_id, "--json").stdout)["is_served"] is None


def test_the_home_folder_of_nobody_is_refused_in_a_line(genarm, prompts):
    refused = genarm("job", "list", GENARM_HOME="~nobody-of-this-name")
    assert (refused.returncode, refused.stderr) == (2, "Error: GENARM_HOME: there is no user ~nobody-of-this-name\n")
    unknown = genarm("job", "submit", prompts, "--base", "~nobody-of-this-name/model")
    assert (unknown.returncode, unknown.stderr) == (2, "Error: ~nobody-of-this-name/model: no such file or folder\n")


def test_a_worker_for_a_base_that_is_not_registered_does_not_start(genarm, tmp_path, broker_url):
    (tmp_path / ".genarm").mkdir()
    (tmp_path / ".genarm" / "models.toml").write_text('[models.tiny]\nkind = "base"\npath = "tiny"\n')
    refused = genarm("worker", "--base", "huge", GENARM_BROKER_URL=broker_url)
    assert refused.returncode == 2, refused.stderr
    assert "'huge' is not in the registry" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "cuda:63"], "CUDA device"),
        (["--device", "toaster"], "use auto, cpu, cuda or cuda:N"),
        (["--device", "cpu", "--device-map", "balanced"], "GENARM_DEVICE says 'cpu'"),
        (["--device-map", "sideways"], "is not one of 'auto', 'balanced'"),
    ],
)
def test_a_worker_that_could_run_no_job_does_not_start(genarm, options, message, broker_url):
    refused = genarm("worker", *options, GENARM_BROKER_URL=broker_url, GENARM_ALLOW_ANY_MODEL="true")
    assert refused.returncode == 2, refused.stderr
    assert message in refused.stderr
    assert "Traceback" not in refused.stderr


def test_run_shows_in_a_line_why_its_worker_does_not_start(genarm, models, prompts):
    refused = genarm("run", prompts, "-o", "out.jsonl", "--base", models / "base", "--device", "cuda:63")
    assert refused.returncode == 1, refused.stderr
    assert "Error: device 'cuda:63': no CUDA device is available here" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_run_keeps_its_rows_in_postgresql_when_told_to(genarm, models, prompts, ledger_url, tmp_path):
    options = ["-o", "out.jsonl", "--base", models / "base", "--max-new-tokens", "3"]
    done = genarm("run", prompts, *options, GENARM_DATABASE_URL=ledger_url, GENARM_ALLOW_ANY_MODEL="true")
    assert done.returncode == 3, done.stderr
    (job,) = map(json.loads, genarm("job", "list", "--json", GENARM_DATABASE_URL=ledger_url).stdout.splitlines())
    exported = genarm("job", "export", job["id"], "-o", "-", GENARM_DATABASE_URL=ledger_url)
    assert exported.stdout == (tmp_path / "out.jsonl").read_text()
    assert not (tmp_path / ".genarm" / "genarm.db").exists()
