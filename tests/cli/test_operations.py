"""The commands around jobs: training, servers, migrations, the doctor."""

import json
import signal

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM


def test_arm_train_writes_an_adapter_that_peft_loads_and_genarm_runs(genarm, models, prompts, tmp_path):
    rows = [{"prompt": f"q{n}", "chosen": "yes " * (1 + n % 3), "rejected": "no " * (1 + n % 2)} for n in range(12)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--base", models / "base", "--eval-fraction", "0.25", "--batch", "4", "--about", "Prefers yes."]
    trained = genarm("arm", "train", "pairs.jsonl", *options, "-o", "arm", "--lr", "0.01", "--seed", "7")
    assert trained.returncode == 0, trained.stderr
    assert "9 pairs for training, 3 held out" in trained.stderr
    assert "held-out accuracy" in trained.stderr
    card = (tmp_path / "arm" / "README.md").read_text()
    assert "genarm arm train pairs.jsonl" in card
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
    (tmp_path / "bad.jsonl").write_text(bad)
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


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_run_keeps_its_rows_in_postgresql_when_told_to(genarm, models, prompts, ledger_url, tmp_path):
    options = ["-o", "out.jsonl", "--base", models / "base", "--max-new-tokens", "3"]
    done = genarm("run", prompts, *options, GENARM_DATABASE_URL=ledger_url, GENARM_ALLOW_ANY_MODEL="true")
    assert done.returncode == 3, done.stderr
    (job,) = map(json.loads, genarm("job", "list", "--json", GENARM_DATABASE_URL=ledger_url).stdout.splitlines())
    exported = genarm("job", "export", job["id"], "-o", "-", GENARM_DATABASE_URL=ledger_url)
    assert exported.stdout == (tmp_path / "out.jsonl").read_text()
    assert not (tmp_path / ".genarm" / "genarm.db").exists()
