"""Datasets as other tools write them."""

import csv
import gzip
import io
import json
import sys
from types import SimpleNamespace

import pandas as pd
import pyarrow as pa
import pytest

from db.datasets import Columns, DatasetSource, Template, open_dataset
from db.datasets.sweep import expanded, points
from db.errors import DatasetError
from db.submission import NewRow, _batches

CHAT = {"role": "user", "content": "C"}
REVIEWS = [
    {"text": "naïve 漢字 🎉", "stars": 4},
    {"text": 'two\nlines, "quoted"', "stars": 1},
    {"text": "c", "stars": 3},
]


def read(source, *, samples=1, file_format=None, config=None, split=None, **columns):
    where = DatasetSource(str(source), Columns(**columns), file_format, config, split)
    return [row.row for row in open_dataset(where, samples)]


def batch_request(**body):
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hi"}], **body}
    return {"custom_id": "request-1", "method": "POST", "url": "/v1/chat/completions", "body": body}


@pytest.fixture
def batch_file(tmp_path):
    """Write OpenAI batch requests, and return their file."""

    def write(*rows):
        path = tmp_path / "batch.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


def test_csv_of_pandas_comes_in_as_it_was(tmp_path):
    path = tmp_path / "reviews.csv"
    pd.DataFrame(REVIEWS).to_csv(path, index=False, lineterminator="\r\n", encoding="utf-8-sig")
    rows = read(path, prompt="text")
    assert [row["prompt"] for row in rows] == [review["text"] for review in REVIEWS]
    assert [row["stars"] for row in rows] == ["4", "1", "3"]


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_compressed_files_come_in_whatever_their_name(tmp_path, suffix):
    lines = "".join(json.dumps({"prompt": f"p{i}"}) + "\n" for i in range(2000)).encode()
    packed = gzip.compress(lines) if suffix == "gz" else pa.compress(lines, "zstd", asbytes=True)
    for name in (f"rows.jsonl.{suffix}", "rows.jsonl"):
        (tmp_path / name).write_bytes(packed)
        assert len(read(tmp_path / name)) == 2000
    (tmp_path / "twice.jsonl").write_bytes(packed + packed)
    assert len(read(tmp_path / "twice.jsonl")) == 4000
    (tmp_path / "cut.jsonl").write_bytes(packed[:-9])
    with pytest.raises(DatasetError, match=r"cut\.jsonl, after line \d+: "):
        read(tmp_path / "cut.jsonl")


@pytest.mark.parametrize("file_format", ["jsonl", "csv"])
def test_a_row_of_a_megabyte_passes(tmp_path, file_format):
    text = "ä\n" * 500_000
    path = tmp_path / f"long.{file_format}"
    with path.open("w", newline="", encoding="utf-8") as file:
        if file_format == "csv":
            csv.writer(file).writerows([["prompt"], [text]])
        else:
            file.write(json.dumps({"prompt": text}))
    assert read(path) == [{"prompt": text}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b'prompt\nfine\n"cut sho', "line 3: is not CSV"),
        ("a.csv", b'prompt\n"two\nlines"\n\n"not closed\nand\nmore\n', "line 5: is not CSV .unexpected end"),
        ("a.csv", b'prompt\n"two\nlines",1\n', "line 2: has more fields"),
        ("a.csv", b"prompt,label\na,1\nb\n", r"line 3: has fewer fields than the header \(1, not 2\)"),
        ("a.csv", b"prompt,prompt\na,b\n", "line 1: two columns are named 'prompt'"),
        ("a.csv", b"", "has no rows"),
        ("a.jsonl", b'{"prompt": "a"}\n{"prompt": "\xff"}\n', "line 2: is not UTF-8"),
        ("a.jsonl", '{"prompt": "a"}'.encode("utf-16"), "is UTF-16; save it as UTF-8"),
        ("a.jsonl", b'{"prompt": "a"}\n{"x": 1e999}\n', "line 2: is not JSON .1e999 is too large"),
        ("a.jsonl", b'{"prompt": "a", "x": ' + b"[" * 100_000, "line 1: is not JSON"),
    ],
)
def test_a_broken_file_is_refused_with_the_line(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        read(path)


def test_a_file_without_line_ends_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("db.datasets.streams.LONGEST_LINE_BYTES", 1 << 20)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"prompt": "' + b"a" * (2 << 20))
    with pytest.raises(DatasetError, match="line 1: is longer than 1 MiB"):
        read(path)


def test_stdin_may_be_csv_and_compressed(monkeypatch):
    packed = gzip.compress(b"prompt\nfrom a pipe\n")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(packed))))
    assert read("-", file_format="csv") == [{"prompt": "from a pipe"}]
    with pytest.raises(DatasetError, match="Parquet cannot be read from stdin"):
        read("-", file_format="parquet")


def test_split_and_config_are_refused_for_files(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "a"}')
    with pytest.raises(DatasetError, match="are for Hugging Face datasets"):
        read(tmp_path / "a.jsonl", split="train")


def test_a_template_makes_prompts_of_columns(tmp_path):
    path = tmp_path / "reviews.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*REVIEWS, {"stars": 5}]))
    rows = read(path, template=Template.parse("{{{stars}}} Continue: {text}"))
    assert rows[0] == {"prompt": "{4} Continue: naïve 漢字 🎉", **REVIEWS[0]}
    assert rows[3]["prompt"] is None
    with pytest.raises(DatasetError, match=r"template's columns 'txt' \(its columns: text, stars\)"):
        read(path, template=Template.parse("{txt}"))


@pytest.mark.parametrize("text", ["no column", "{}", "{text!r}", "{text:>9}", "{text", "text}", "{text[0]!s}"])
def test_a_template_that_cannot_work_is_refused(text):
    with pytest.raises(DatasetError, match="--template: "):
        Template.parse(text)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"prompt": "question"}, {"prompt": "Q", "input_prompt": "P", "input_messages": [], "id": 1, "custom_id": "c"}),
        ({"messages": "chat"}, {"messages": [CHAT], "input_messages": [], "input_prompt": "P", "id": 1}),
        ({"prompt": "question", "messages": "chat"}, {"prompt": "Q", "messages": [CHAT], "input_prompt": "P"}),
        ({"template": Template.parse("{prompt}?")}, {"prompt": "P?", "input_prompt": "P", "input_messages": []}),
        ({"id": "uid"}, {"id": "u", "input_id": 1, "input_custom_id": "c", "prompt": "P", "messages": []}),
        ({"response": "answer"}, {"response": "A", "input_response": "R", "prompt": "P"}),
        ({"prompt": "prompt"}, {"prompt": "P", "input_messages": [], "question": "Q"}),
        ({"prompt": "question", "id": "question"}, {"prompt": "Q", "id": "Q", "input_prompt": "P", "input_id": 1}),
        ({}, {"prompt": "P", "messages": [], "id": 1, "custom_id": "c", "response": "R", "question": "Q"}),
    ],
)
def test_a_chosen_column_or_template_displaces_what_would_stand_in_its_way(tmp_path, columns, expected):
    path = tmp_path / "rows.jsonl"
    row = {"prompt": "P", "messages": [], "id": 1, "custom_id": "c", "response": "R"}
    row |= {"question": "Q", "chat": [CHAT], "uid": "u", "answer": "A"}
    path.write_text(json.dumps(row))
    (found,) = read(path, **columns)
    assert expected.items() <= found.items()
    assert all(value in found.values() for value in row.values())
    assert columns or found == row


@pytest.mark.parametrize("role", ["prompt", "messages", "id", "response"])
def test_a_column_that_was_named_must_be_there(tmp_path, role):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "P", "messages": [], "id": 1, "response": "R"}\n')
    message = rf"has no column 'typo' \(its columns: prompt, messages, id, response\); give --{role}-column one of them"
    with pytest.raises(DatasetError, match=message):
        read(path, **{role: "typo"})


def test_a_column_that_was_named_may_be_missing_from_some_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"question": "Q", "id": 1}, {"question": "Q", "uid": "u"}, {"prompt": "P", "uid": "v"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = list(open_dataset(DatasetSource(str(path), Columns(prompt="question", id="uid"))))
    assert [row.custom_id for row in found] == [None, "u", "v"]
    assert [row.row.get("prompt") for row in found] == ["Q", "Q", None]
    path.write_text('{"question": null, "prompt": "P"}\n')
    with pytest.raises(DatasetError, match="has no value in column 'question'"):
        read(path, prompt="question")


def test_a_template_and_a_column_of_prompts_contradict_each_other():
    for role in ("prompt", "messages"):
        with pytest.raises(DatasetError, match="leave out --prompt-column and --messages-column"):
            Columns(template=Template.parse("{text}"), **{role: "text"})


def test_columns_may_be_named_in_batch_request_files(batch_file):
    (row,) = open_dataset(DatasetSource(str(batch_file(batch_request())), Columns(id="custom_id")))
    assert (row.custom_id, row.row["id"]) == ("request-1", "request-1")
    with pytest.raises(DatasetError, match="has no column 'question'"):
        read(batch_file(batch_request()), prompt="question")


@pytest.mark.parametrize(
    ("row", "chosen", "expected"),
    [
        (
            {"prompt": "old", "question": "new"},
            {"prompt": "question"},
            {"input_prompt": "old", "prompt": "new"},
        ),
        (
            {"prompt": "p", "id": 1, "input_id": 2, "input_input_id": 3, "key": 4},
            {"id": "key"},
            {"prompt": "p", "input_input_input_id": 1, "input_id": 2, "input_input_id": 3, "id": 4},
        ),
        ({"prompt": "a", "input_prompt": "b"}, {"prompt": "input_prompt"}, {"input_prompt": "a", "prompt": "b"}),
        (
            {"prompt": "a", "response": "b"},
            {"prompt": "response", "response": "prompt"},
            {"response": "a", "prompt": "b"},
        ),
    ],
)
def test_a_column_in_the_way_of_a_chosen_one_is_kept(tmp_path, row, chosen, expected):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row))
    assert read(path, **chosen) == [expected]


def test_csv_cells_may_hold_messages_weights_and_sampling(tmp_path):
    path = tmp_path / "rows.csv"
    messages = [{"role": "user", "content": "Hi"}]
    cells = {"messages": json.dumps(messages), "weights": '{"helpful": 2}', "sampling": ""}
    pd.DataFrame([cells]).to_csv(path, index=False)
    assert read(path) == [{"messages": messages, "weights": {"helpful": 2}, "sampling": None}]


def test_openai_batch_requests_become_rows(batch_file):
    request = batch_request(
        messages=[{"role": "user", "content": [{"type": "text", "text": "Hi "}, {"type": "text", "text": "there"}]}],
        max_tokens=7, temperature=0.5, stop="END", n=1, frequency_penalty=0, user="me", top_p=None,
    )  # fmt: skip
    (row,) = read(batch_file(request))
    assert row["messages"] == [{"role": "user", "content": "Hi there"}]
    assert row["sampling"] == {"max_new_tokens": 7, "temperature": 0.5, "stop": ["END"]}
    assert (row["custom_id"], row["url"]) == ("request-1", "/v1/chat/completions")
    assert row["body"] == {"model": "gpt-4o", "user": "me"}


def test_saved_conversations_with_null_fields_pass_in_batch_requests_too(batch_file):
    reply = {"role": "assistant", "content": "C", "name": None, "refusal": None, "tool_calls": None}
    (row,) = read(batch_file(batch_request(messages=[CHAT, reply])))
    assert row["messages"] == [CHAT, {"role": "assistant", "content": "C"}]


def test_what_a_batch_request_asks_for_in_vain_is_not_forgotten(batch_file):
    (row,) = read(batch_file(batch_request(frequency_penalty=0.5, response_format={"type": "json_object"})))
    assert row["sampling"] == {"frequency_penalty": 0.5, "response_format": {"type": "json_object"}}
    asks_for_more = batch_file(batch_request(), batch_request(n=3))
    with pytest.raises(DatasetError, match=r"line 2: asks for n = 3, .* --samples 3"):
        read(asks_for_more)
    assert len(read(batch_file(batch_request(n=3)), samples=3)) == 1


def test_a_sweep_repeats_each_row_for_each_combination():
    sweep = {"helpful": [0.0, 1.0], "harmless": [0.0, 2.0]}
    assert points(sweep)[1] == {"helpful": 0.0, "harmless": 2.0}
    rows = [
        NewRow("a", {"id": "a", "weights": {"third": 3, "helpful": 7}}),
        NewRow(None, {"prompt": "b"}),
        NewRow("c", {"weights": 1}),
    ]
    found = list(expanded(rows, sweep))
    assert [row.custom_id for row in found] == ["a"] * 4 + ["1"] * 4 + ["c"] * 4
    assert found[3].row == {"id": "a", "weights": {"third": 3, "helpful": 1.0, "harmless": 2.0}}
    assert found[4].row["id"] == 1
    assert found[8].row["weights"] == 1


def test_rows_are_stored_in_batches_bounded_by_number_and_by_text():
    long = [NewRow(None, {"messages": [{"role": "user", "content": "x" * 5_000_000}]}) for _ in range(5)]
    short = [NewRow(None, {"prompt": "x"}) for _ in range(2500)]
    assert [len(batch) for _, batch in _batches(long)] == [2, 2, 1]
    assert [len(batch) for _, batch in _batches(short)] == [1000, 1000, 500]
