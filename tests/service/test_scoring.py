"""Jobs that score, with an engine that scores by counting letters, over a real ledger and real Redis."""

from concurrent.futures import Future

import pytest

import db.jobs
import db.results
from db.datasets import Columns, DatasetSource, open_dataset
from db.errors import DatasetError
from db.jobs import NewJob, NewRow
from models.scoring import ScoredResponse
from tests.results.filled import shard_ids
from tests.service.fake_engine import FakeEngine
from worker.app import make_app
from worker.scoring import KIND
from worker.tasks import run_shard


class ScoringEngine(FakeEngine):
    """A token is a letter, its reward minus its place."""

    def score(self, guided, row):
        self.submitted.append(row)
        future = Future()
        tokens = list(row.tokens or map(ord, row.response))
        rewards = [-float(place) for place, _ in enumerate(tokens)]
        if row.response == "break":
            future.set_exception(RuntimeError("a bug"))
        elif row.response != "hold":
            scored = dict.fromkeys(row.prompt.weights, rewards)
            future.set_result(ScoredResponse(tokens, [-1.0] * len(tokens), scored, len(row.prompt.prompt)))
        return future


@pytest.fixture
def score(settings, ledger):
    """Submit and run a job that scores; returns its output rows."""
    apps = []

    def score(*rows, engine=ScoringEngine, base="base", **limits):
        arms = [{"name": "a", "ref": "arm-a"}, {"name": "b", "ref": "arm-b"}]
        new = [NewRow(None, row) for row in rows]
        job = db.jobs.submit(ledger, NewJob(spec={"base": base, "arms": arms}, samples=1, kind=KIND), new)
        left = shard_ids(ledger, job)  # before the service's rescuer publishes them
        app = make_app(settings.model_copy(update=limits), engine)
        apps.append(app)
        app.service.prepare()
        app.service.start()
        for shard_id in left:
            run_shard(app.service, shard_id)
        return job, list(db.results.export_rows(ledger, job.id))

    yield score
    for app in apps:
        app.service.drain(0)
        app.service.stop()


def test_responses_come_back_with_the_rewards_of_each_arm(score, ledger):
    job, (row, given) = score(
        {"prompt": "hello", "response": "abc", "weights": {"nobody": 1}},
        {"prompt": "x", "response": "ab", "tokens": [7, 8, 9]},
    )
    assert (row["completion"], row["tokens"], row["prompt_tokens"]) == ("abc", [97, 98, 99], 5)
    assert row["token_rewards"] == {"a": [0.0, -1.0, -2.0], "b": [0.0, -1.0, -2.0]}
    assert row["rewards"] == {"a": -3.0, "b": -3.0}
    assert (row["logprobs"], row["base_logprobs"]) == (None, [-1.0] * 3)
    assert (given["tokens"], given["input_tokens"]) == ([7, 8, 9], [7, 8, 9])
    assert db.jobs.find(ledger, job.id).status == "completed"


def test_without_a_base_there_are_no_log_probabilities_of_one(score):
    _, (row,) = score({"prompt": "p", "response": "abc"}, base="arm-a")
    assert row["base_logprobs"] is None


def test_a_response_that_was_cut_is_still_cut_when_it_has_been_scored(score):
    _, rows = score({"prompt": "p", "response": "abc"}, {"prompt": "p", "response": "abc", "finish_reason": "length"})
    assert [row["finish_reason"] for row in rows] == ["stop", "length"]


def test_prompt_and_response_count_for_the_limit_on_prompts(score):
    long, short = {"prompt": "p" * 6, "response": "r" * 6}, {"prompt": "p" * 6, "response": "r" * 4}
    _, rows = score(long, short, max_prompt_bytes=10)
    assert [row["error"] and row["error"]["code"] for row in rows] == ["prompt_too_large", None]


def test_rows_that_cannot_be_scored_fail_alone(score):
    _, rows = score(
        {"prompt": "p"}, {"prompt": "p", "response": 3}, {"response": "abc"},
        {"prompt": "p", "response": "break"}, {"prompt": "p", "response": "fine", "tokens": "not ids"},
    )  # fmt: skip
    codes = [row["error"] and row["error"]["code"] for row in rows]
    assert codes == ["invalid_response", "invalid_response", "invalid_prompt", "engine_error", None]


def test_an_engine_that_only_generates_fails_the_job_in_words(score, ledger):
    job, (row,) = score({"prompt": "p", "response": "abc"}, engine=FakeEngine)
    found = db.jobs.find(ledger, job.id)
    assert (found.status, found.error_code) == ("failed", "unsupported_model")
    assert "cannot score" in found.error_message
    assert row["error"]["code"] == "unsupported_model"


def test_a_dataset_without_responses_is_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "answer": "b"}\n')
    with pytest.raises(DatasetError, match=r"no column 'response' .*; name one with --response-column"):
        open_dataset(DatasetSource(str(path), Columns(needs_response=True)))
    (row,) = open_dataset(DatasetSource(str(path), Columns(response="answer", needs_response=True)))
    assert row.row["response"] == "b"
