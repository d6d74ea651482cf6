"""Datasets through the command line: keys, sweeps, templates, batches, following, scores."""

import json
import shlex
import subprocess

import pandas as pd
import pytest
from openai.types.chat import ChatCompletion

from tests.cli.conftest import COMMAND
from tests.results import filled
from worker.ledger import open_ledger
from worker.settings import Settings


@pytest.fixture
def genarm(genarm_inside):
    """Commands run in this process: this file starts many."""
    return genarm_inside


def lines(text):
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def base(models):
    return ["--base", models / "base", "--max-new-tokens", "3"]


def test_a_key_finds_the_first_job_and_refuses_another(genarm, base, prompts):
    submit = ["job", "submit", prompts, *base, "--key", "nightly"]
    first, again = genarm(*submit), genarm(*submit)
    assert first.stdout == again.stdout != ""
    other = genarm(*submit, "--seed", "5")
    assert other.returncode == 2
    assert first.stdout.strip() in other.stderr
    assert "--key" in other.stderr
    assert len(genarm("job", "list", "--json").stdout.splitlines()) == 1


def test_a_broken_last_line_stores_nothing(genarm, base, tmp_path):
    rows = "".join(json.dumps({"prompt": f"p{i}"}) + "\n" for i in range(3000))
    (tmp_path / "cut.jsonl").write_text(rows + '{"prompt": "cut sho')
    refused = genarm("job", "submit", "cut.jsonl", *base)
    assert refused.returncode == 2
    assert "cut.jsonl, line 3001: is not JSON" in refused.stderr
    assert genarm("job", "list", "--json").stdout == ""


def test_a_sweep_of_a_template_runs_in_one_job_and_shows_its_front(genarm, base, models, tmp_path):
    pd.DataFrame({"text": ["It was fine", "No"], "stars": [4, 1]}).to_csv(tmp_path / "reviews.csv", index=False)
    arms = ["--arm", f"helpful={models / 'arm'}", "1", "--arm", f"other={models / 'base'}", "0"]
    sweep = ["--sweep", "helpful=0,2", "--sweep", "other=0,0.5", "--template", "{stars} stars: {text}"]
    done = genarm("run", "reviews.csv", "-o", "out.csv", *base, *arms, *sweep, "-n", "2", "--json")
    assert done.returncode == 0, done.stderr
    frame = pd.read_csv(tmp_path / "out.csv")
    assert len(frame) == 2 * 4 * 2
    assert frame["prompt"][0] == "4 stars: It was fine"
    assert frame["weights"].nunique() == 4
    (job,) = lines(done.stdout)
    assert job["sweep"] == {"helpful": [0.0, 2.0], "other": [0.0, 0.5]}
    shown = genarm("job", "show", job["id"]).stdout
    assert "helpful 2, other 0.5" in shown
    assert "hypervolume" in shown
    (facts,) = lines(genarm("job", "show", job["id"], "--json").stdout)
    assert len(facts["front"]["points"]) == 4
    report = genarm("job", "report", job["id"], "-o", "report.html")
    assert report.returncode == 0, report.stderr
    assert "as ids" not in report.stderr


@pytest.mark.parametrize(
    ("option", "message"),
    [("no=1", "is no ARM"), ("arm=x", "ARM=NUMBER"), ("arm=nan", "finite"), ("arm=", "ARM=NUMBER")],
)
def test_a_sweep_that_cannot_be_is_refused(genarm, base, models, prompts, option, message):
    refused = genarm("job", "submit", prompts, *base, "--arm", models / "arm", "1", "--sweep", option)
    assert refused.returncode == 2
    assert message in refused.stderr


def test_a_batch_file_goes_in_and_comes_back(genarm, base, tmp_path):
    rows = [
        {"custom_id": f"r{i}", "method": "POST", "url": "/v1/chat/completions",
         "body": {"model": "m", "messages": [{"role": "user", "content": f"Hi {i}"}], **more}}
        for i, more in enumerate([{"max_tokens": 2}, {"tools": [{"type": "function"}]}, {"temperature": 0}])
    ]  # fmt: skip
    (tmp_path / "batch.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = genarm("run", "batch.jsonl", "-o", "results.jsonl", "--output-format", "openai", *base)
    assert done.returncode == 3, done.stderr
    first, failed, last = lines((tmp_path / "results.jsonl").read_text())
    assert [first["custom_id"], failed["custom_id"], last["custom_id"]] == ["r0", "r1", "r2"]
    assert first["response"]["body"]["usage"]["completion_tokens"] == 2
    assert failed["response"] is None
    assert failed["error"]["code"] == "invalid_sampling"
    assert "tools" in failed["error"]["message"]


def test_a_batch_of_500_requests_comes_back_as_a_client_of_the_api_expects(genarm, base, models, tmp_path):
    system = {"role": "system", "content": "Be brief"}
    bodies = [
        {"model": "m", "messages": [system, {"role": "user", "content": f"Question {i}"}], **more}
        for i in range(125)
        for more in (
            {"max_tokens": 2},
            {"max_completion_tokens": 1},
            {"temperature": 0, "seed": i},
            {"top_p": 0.5, "stop": "x"},
        )
    ]
    bodies[250]["messages"] = []
    requests = [
        {"custom_id": f"r{i}", "method": "POST", "url": "/v1/chat/completions", "body": body}
        for i, body in enumerate(bodies)
    ]
    (tmp_path / "batch.jsonl").write_text("".join(json.dumps(row) + "\n" for row in requests))
    guided = ["--arm", f"helpful={models / 'arm'}", "1"]
    done = genarm("run", "batch.jsonl", "-o", "results.jsonl", "--output-format", "openai", *base, *guided)
    assert done.returncode == 3, done.stderr
    results = lines((tmp_path / "results.jsonl").read_text())
    assert [row["custom_id"] for row in results] == [f"r{i}" for i in range(500)]
    assert [row["custom_id"] for row in results if row["error"]] == ["r250"]
    for row, body in zip(results, bodies, strict=True):
        if row["error"] is None:
            assert row["response"]["status_code"] == 200
            answer = ChatCompletion.model_validate(row["response"]["body"], strict=True)
            assert len(answer.choices) == 1
            most = body.get("max_tokens", body.get("max_completion_tokens", 3))
            assert 1 <= answer.usage.completion_tokens <= most


def test_following_writes_all_rows_of_a_job_that_is_not_done_yet(genarm, start_genarm, base, prompts, tmp_path):
    job = genarm("job", "submit", prompts, *base).stdout.strip()
    follower = start_genarm("job", "export", job, "-o", "out.jsonl", "--follow")
    up = start_genarm("up")
    assert up.stderr.readline().startswith("Ready")
    assert follower.wait(60) == 3, follower.stderr.read()
    exported = genarm("job", "export", job, "-o", "-")
    assert (tmp_path / "out.jsonl").read_text() == exported.stdout
    assert len(exported.stdout.splitlines()) == 4


def test_a_reader_that_goes_away_is_no_error(environment, tmp_path):
    ledger = open_ledger(Settings(home=tmp_path / ".genarm"))
    job = filled.submit(ledger, [f"p{i}" for i in range(2000)], shard_rows=500)
    filled.fill(ledger, job)
    ledger.dispose()
    shell = f"{shlex.join(COMMAND)} job export {job.id} -o - | head -n 1"
    done = subprocess.run(shell, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


def test_score_gives_the_rewards_that_run_stored_and_names_bad_rows(genarm, base, models, prompts, tmp_path):
    arms = ["--arm", models / "arm"]
    ran = genarm("run", prompts, "-o", "ran.jsonl", *base, *arms, "1.0")
    assert ran.returncode == 3, ran.stderr
    stored = [row for row in lines((tmp_path / "ran.jsonl").read_text()) if row["error"] is None]
    typed = [{"id": "typed", "prompt": "Hi", "response": "there"}, {"id": "bad", "prompt": "Hi", "response": ""}]
    typed[1]["finish_reason"] = "length"
    again = [{**row, "response": row["completion"]} for row in stored] + typed
    (tmp_path / "again.jsonl").write_text("".join(json.dumps(row) + "\n" for row in again))
    done = genarm("score", "again.jsonl", "-o", "scored.jsonl", "--base", models / "base", *arms)
    assert done.returncode == 3, done.stderr
    *scored, there, bad = lines((tmp_path / "scored.jsonl").read_text())
    for one, row in zip(stored, scored, strict=True):
        assert (row["id"], row["completion"], row["tokens"]) == (one["id"], one["completion"], one["tokens"])
        assert row["token_rewards"]["arm"] == pytest.approx(one["token_rewards"]["arm"], abs=1e-4)
        assert row["base_logprobs"] == pytest.approx(one["base_logprobs"], abs=1e-4)
    assert len(there["tokens"]) == len("there") + 1
    assert bad["error"]["code"] == "invalid_response"
    alone = genarm("score", "ran.jsonl", "-o", "-", "--response-column", "completion", *arms)
    without_base = [row for row in lines(alone.stdout) if row["error"] is None]
    assert [row["token_rewards"] for row in without_base] == [row["token_rewards"] for row in scored]
    assert [row["base_logprobs"] for row in without_base] == [None] * len(scored)
    assert "Traceback" not in done.stderr + alone.stderr
