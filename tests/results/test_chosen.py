"""Pairs, best of n, and OpenAI batch results."""

import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion

from db import jobs
from db.datasets import DatasetSource, open_dataset, placed_rows
from db.errors import DatasetError
from db.exports import Export, Exported, export
from db.results import export_rows
from models.training.preferences import Preference, parse_preference
from tests.results import filled
from worker.cli.following import followed_spans

CHAT = [{"role": "user", "content": "Hi"}]
SYSTEM_AND_CHAT = [{"role": "system", "content": "Be kind"}, *CHAT]


@pytest.fixture
def write(ledger, tmp_path):
    """Export a job to JSONL, and return its objects."""

    def write(job, **more):
        exported = export(ledger, job, Export(str(tmp_path / "out.jsonl"), **more))
        return [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()], exported

    return write


def best_and_worst(rows, reward):
    ranked = sorted(rows, key=reward, reverse=True)
    return ranked[0]["completion"], ranked[-1]["completion"]


@pytest.mark.parametrize(
    ("more", "reward"),
    [
        ({}, lambda row: sum(row["rewards"].values())),
        ({"by": {"harmless": 1.0}}, lambda row: row["rewards"]["harmless"]),
        ({"by": {"helpful": 1, "harmless": -2}}, lambda row: np.dot([-2, 1], list(row["rewards"].values()))),
        ({"by": {"helpful": 1.0}, "per_token": True}, lambda row: row["rewards"]["helpful"] / len(row["tokens"])),
    ],
)  # fmt: skip
def test_pairs_are_the_best_and_the_worst(ledger, finished, write, more, reward):
    job = finished([f"p{i}" for i in range(20)], samples=4, failing={3})
    pairs, exported = write(job, shape="preference", **more)
    assert (len(pairs), exported.rows, exported.skipped) == (19, 19, 1)
    rows = list(export_rows(ledger, job.id))
    for pair in pairs:
        own = [row for row in rows if row["id"] == pair["id"]]
        assert (pair["chosen"], pair["rejected"]) == best_and_worst(own, reward)
        assert pair["chosen_reward"] >= pair["rejected_reward"]


def test_the_weights_of_a_row_choose_unless_others_are_given(ledger, finished, write):
    job = finished([{"prompt": "p", "weights": {"helpful": 0.0, "harmless": -1.0}}], samples=4)
    ((pair,), _) = write(job, shape="preference")
    rows = list(export_rows(ledger, job.id))
    assert (pair["chosen"], pair["rejected"]) == best_and_worst(rows, lambda row: -row["rewards"]["harmless"])


@pytest.mark.parametrize("prompt", [{"prompt": "p"}, {"messages": SYSTEM_AND_CHAT}])
@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
def test_pairs_are_what_arm_training_reads(ledger, finished, tmp_path, prompt, name):
    job = finished([prompt] * 5, samples=3)
    export(ledger, job, Export(str(tmp_path / name), shape="preference"))
    read = [row for _, row in placed_rows(DatasetSource(str(tmp_path / name)))]
    pairs = [parse_preference("line", row) for row in read]
    assert len(pairs) == 5
    for pair, row in zip(pairs, read, strict=True):
        assert isinstance(pair, Preference)
        if "messages" in prompt:
            assert list(pair.chats.prompt) == SYSTEM_AND_CHAT
            assert row["chosen"] == list(pair.chats.chosen)
        else:
            assert (pair.texts.prompt, pair.texts.chosen) == ("p", row["chosen"])


def test_pairs_of_chats_are_conversational_as_trl_has_them(finished, write):
    """https://huggingface.co/docs/trl/dataset_formats: the prompt and both replies are lists of messages."""
    (pair,), _ = write(finished([{"messages": CHAT}], samples=3), shape="preference")
    assert list(pair) == ["id", "prompt", "chosen", "rejected", "chosen_reward", "rejected_reward"]
    assert pair["prompt"] == CHAT
    for side in ("chosen", "rejected"):
        (message,) = pair[side]
        assert message.keys() == {"role", "content"}
        assert message["role"] == "assistant"
    assert pair["chosen"] != pair["rejected"]


def test_rows_whose_best_is_no_better_than_their_worst_give_no_pair(ledger, finished, write):
    job = finished(["p", {"prompt": "q", "weights": {"helpful": 0.0, "harmless": 0.0}}], samples=4)
    pairs, exported = write(job, shape="preference")
    assert ([pair["id"] for pair in pairs], exported.skipped) == ([0], 1)
    assert write(job, shape="preference", by={"helpful": 0.0}) == ([], Exported(0, 2))
    assert len({row["completion"] for row in export_rows(ledger, job.id)}) == 8


@pytest.mark.parametrize("name", ["out.csv", "out.parquet"])
def test_a_table_has_the_columns_of_its_rows(ledger, finished, tmp_path, name):
    def columns(job, shape):
        export(ledger, job, Export(str(tmp_path / name), shape=shape))
        read = pd.read_csv if name == "out.csv" else pd.read_parquet
        return list(read(tmp_path / name).columns)

    pair = ["id", "prompt", "chosen", "rejected", "chosen_reward", "rejected_reward"]
    assert columns(finished(["p"], samples=3), "preference") == pair
    assert columns(finished(["p"], samples=3, failing={0}), "preference") == pair
    assert columns(finished(["p"]), "sft") == ["id", "prompt", "completion", "reward"]
    assert columns(finished([{"messages": CHAT}]), "sft") == ["id", "messages", "reward"]
    for shape in ("preference", "sft"):
        with pytest.raises(DatasetError, match=r"as \.jsonl"):
            columns(finished(["p", {"messages": CHAT}], samples=3), shape)


def test_pairs_of_chats_do_not_fit_into_csv(ledger, finished, tmp_path):
    with pytest.raises(DatasetError, match="which CSV cannot hold"):
        export(ledger, finished([{"messages": CHAT}]), Export(str(tmp_path / "out.csv"), shape="preference"))
    assert not (tmp_path / "out.csv").exists()


def test_the_best_of_n_for_prompts_and_chats(ledger, finished, write, tmp_path):
    job = finished(["p", {"messages": CHAT}, "fails"], samples=3, failing={2})
    (prompted, chat), exported = write(job, shape="sft")
    assert exported.skipped == 1
    assert prompted.keys() == {"id", "prompt", "completion", "reward"}
    assert chat["messages"][:1] == CHAT
    assert chat["messages"][1]["role"] == "assistant"
    export(ledger, finished([{"messages": CHAT}]), Export(str(tmp_path / "out.parquet"), shape="sft"))
    ((user, reply),) = pq.read_table(tmp_path / "out.parquet").column("messages").to_pylist()
    assert ([user], reply["role"]) == (CHAT, "assistant")


def test_pairs_need_arms_and_samples(ledger, finished, write):
    with pytest.raises(DatasetError, match="has no ARM"):
        write(finished(["p"], arms=()), shape="preference")
    with pytest.raises(DatasetError, match="--samples 2"):
        write(finished(["p"], samples=1), shape="preference")


def batch_of(count):
    bodies = [{"model": "gpt-4o", "messages": [*CHAT, {"role": "user", "content": str(i)}]} for i in range(count)]
    rows = [
        {"custom_id": f"r{i}", "method": "POST", "url": "/v1/chat/completions", "body": body}
        for i, body in enumerate(bodies)
    ]
    rows[3] |= {"url": "/v1/completions", "body": {"model": "m", "prompt": "a text", "max_tokens": 3}}
    return rows  # fmt: skip


def test_a_batch_file_comes_back_as_its_client_expects(ledger, write, tmp_path):
    path = tmp_path / "batch.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in batch_of(500)))
    rows = [row.row for row in open_dataset(DatasetSource(str(path)), 2)]
    job = filled.submit(ledger, rows)
    filled.fill(ledger, job, failing={7})
    lines, exported = write(job, file_format="openai")
    assert [line["custom_id"] for line in lines] == [f"r{i}" for i in range(500)]
    assert exported.rows == 500
    assert len({line["id"] for line in lines}) == 500
    expected = list(export_rows(ledger, job.id))
    for line in lines:
        assert line.keys() == {"id", "custom_id", "response", "error"}
        if line["custom_id"] == "r7":
            assert line["response"] is None
            assert line["error"]["code"] == "prompt_too_long"
            continue
        assert (line["error"], line["response"]["status_code"]) == (None, 200)
        kind = Completion if line["custom_id"] == "r3" else ChatCompletion
        body = kind.model_validate(line["response"]["body"], strict=True)
        own = [row for row in expected if row["id"] == line["custom_id"]]
        texts = [choice.text if kind is Completion else choice.message.content for choice in body.choices]
        assert texts == [row["completion"] for row in own]
        assert [choice.index for choice in body.choices] == [0, 1]
        assert body.usage.completion_tokens == sum(len(row["tokens"]) for row in own)
        assert body.usage.total_tokens == body.usage.prompt_tokens + body.usage.completion_tokens


@pytest.mark.parametrize(
    ("asked", "is_answered"),
    [({"logprobs": True, "top_logprobs": 3}, True), ({"logprobs": 0}, True), ({"logprobs": False}, False), ({}, False)],
)
def test_logprobs_of_the_sampled_tokens_come_back_where_they_were_asked_for(
    ledger, write, tmp_path, asked, is_answered
):
    chat, text = batch_of(4)[2:]
    for request in (chat, text):
        request["body"] |= asked
    path = tmp_path / "batch.jsonl"
    path.write_text(f"{json.dumps(chat)}\n{json.dumps(text)}\n")
    job = filled.submit(ledger, [row.row for row in open_dataset(DatasetSource(str(path)))], samples=1)
    filled.fill(ledger, job)
    lines, _ = write(job, file_format="openai")
    of_chat, of_text = [line["response"]["body"]["choices"][0]["logprobs"] for line in lines]
    if not is_answered:
        assert of_chat is of_text is None
        return
    rows = list(export_rows(ledger, job.id))
    names = [[f"token_id:{token}" for token in row["tokens"]] for row in rows]
    assert [one["token"] for one in of_chat["content"]] == names[0]
    assert [one["logprob"] for one in of_chat["content"]] == rows[0]["logprobs"]
    assert all(one["top_logprobs"] == [] for one in of_chat["content"])
    assert (of_text["tokens"], of_text["token_logprobs"]) == (names[1], rows[1]["logprobs"])
    ChatCompletion.model_validate(lines[0]["response"]["body"], strict=True)
    Completion.model_validate(lines[1]["response"]["body"], strict=True)


def test_a_column_called_body_asks_for_nothing(finished, write):
    ((line,), _) = write(finished([{"prompt": "p", "body": "logprobs"}], samples=1), file_format="openai")
    assert line["response"]["body"]["choices"][0]["logprobs"] is None


@pytest.mark.parametrize("is_followed", [False, True])
def test_rows_that_a_cancelled_job_left_out_are_errors_of_a_batch(ledger, submit, fill, write, tmp_path, is_followed):
    job = submit([{"custom_id": f"r{i}", "prompt": "p"} for i in range(6)], samples=2, shard_rows=2)
    fill(job, shards_at_most=1)
    lines, _ = write(job, file_format="openai")
    assert [line["custom_id"] for line in lines] == ["r0", "r1"]
    jobs.cancel(ledger, job.id)
    spans = followed_spans(ledger, job.id) if is_followed else None
    export(ledger, job, Export(str(tmp_path / "out.jsonl"), "openai"), spans)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["custom_id"] for line in lines] == [f"r{i}" for i in range(6)]
    assert [line["error"] and line["error"]["code"] for line in lines] == [None] * 2 + ["cancelled"] * 4
    assert [line["response"] is None for line in lines] == [False] * 2 + [True] * 4


def test_a_sweep_has_no_batch_results(finished, write):
    rows = [{"custom_id": "a", "prompt": "p", "weights": {"helpful": w}} for w in (0.0, 1.0)]
    with pytest.raises(DatasetError, match="is a sweep"):
        write(finished(rows, sweep={"helpful": [0.0, 1.0]}), file_format="openai")
