"""OpenAI's batch requests: every field is done, changes nothing, asks for nothing, or fails its row by name."""

import json

import pytest
from openai.types import completion_create_params as texts
from openai.types.chat import completion_create_params as chats
from openai.types.responses import Response
from openai.types.responses import response_create_params as responses

from db import jobs
from db.datasets import Columns, DatasetSource, open_dataset
from db.datasets.batch_requests import CHAT, RESPONSES, TEXT, WITHOUT_EFFECT
from db.errors import DatasetError
from db.exports import Export, export
from models.errors import RowError
from models.spec import GenerationSpec, Message, PromptRow
from tests.results import filled

SPEC = GenerationSpec.parse({"base": "b", "sampling": {"top_k": 50}})
BODIES = {CHAT: {"messages": [{"role": "user", "content": "hi"}]}, TEXT: {"prompt": "hi"}, RESPONSES: {"input": "hi"}}
TYPES = {
    CHAT: (chats.CompletionCreateParamsNonStreaming, chats.CompletionCreateParamsBase),
    TEXT: (texts.CompletionCreateParamsNonStreaming, texts.CompletionCreateParamsBase),
    RESPONSES: (responses.ResponseCreateParamsNonStreaming, responses.ResponseCreateParamsBase),
}
DONE = {
    "messages", "prompt", "input", "instructions", "n", "seed", "stop", "temperature", "top_p", "max_tokens",
    "max_completion_tokens", "max_output_tokens",
}  # fmt: skip
NEUTRAL = {
    "background": False, "best_of": 1, "echo": False, "frequency_penalty": 0, "function_call": "none", "functions": [],
    "include": [], "logit_bias": {}, "modalities": ["text"], "presence_penalty": 0.0, "reasoning": {"effort": None},
    "response_format": {"type": "text"}, "stream": False, "suffix": "",
    "text": {"format": {"type": "text"}, "verbosity": "medium"},
    "tool_choice": "auto", "tools": [], "truncation": "disabled", "verbosity": "medium",
}  # fmt: skip
REFUSED = {
    "access_programs": {"a": 1}, "audio": {"voice": "alloy", "format": "wav"}, "background": True,
    "background_options": {"a": 1}, "best_of": 2, "context_management": [{"type": "compaction"}],
    "conversation": "conv_1", "echo": True, "frequency_penalty": 0.5, "function_call": {"name": "f"},
    "functions": [{"name": "f"}], "image": {"a": 1}, "include": ["message.output_text.logprobs"],
    "logit_bias": {"5": 1}, "modalities": ["text", "audio"], "moderation": {"a": 1}, "presence_penalty": -1,
    "previous_response_id": "resp_1", "prompt": {"id": "pmpt_1"}, "reasoning": {"effort": "high"},
    "reasoning_effort": "low", "response_format": {"type": "json_object"}, "stream": True, "suffix": "after",
    "text": {"format": {"type": "json_object"}}, "tool_choice": "required",
    "tools": [{"type": "function"}], "truncation": "auto", "verbosity": "low", "web_search_options": {"a": 1},
}  # fmt: skip
NAMED_AS = {"text": "response_format"}
CASES = [
    (endpoint, name)
    for endpoint, kinds in TYPES.items()
    for name in sorted({name for kind in kinds for name in kind.__annotations__})
]


def request(endpoint, custom_id="r-1", **body):
    return {"custom_id": custom_id, "method": "POST", "url": endpoint, "body": {**BODIES[endpoint], **body}}


@pytest.fixture
def parsed(tmp_path):
    """A batch request as the engine gets it."""

    def parse(row, samples=1, spec=SPEC):
        path = tmp_path / "batch.jsonl"
        path.write_text(json.dumps(row) + "\n")
        (found,) = open_dataset(DatasetSource(str(path)), samples)
        return PromptRow.parse(found.row, 0, spec)

    return parse


@pytest.mark.parametrize(("endpoint", "name"), CASES)
def test_every_field_of_openai_is_done_or_neutral_or_refused_by_name(parsed, endpoint, name):
    known = (name in DONE) + (name in WITHOUT_EFFECT) + (name in NEUTRAL or name in REFUSED)
    assert known == 1 or name == "prompt", "a field that openai has brought: say what becomes of it"
    plain = parsed(request(endpoint))
    assert parsed(request(endpoint, **{name: None} if name not in BODIES[endpoint] else {})) == plain
    if name in WITHOUT_EFFECT:
        assert parsed(request(endpoint, **{name: "anything"})) == plain
    if name in NEUTRAL:
        assert parsed(request(endpoint, **{name: NEUTRAL[name]})) == plain
    if name in REFUSED and name not in BODIES[endpoint]:
        with pytest.raises(RowError, match=f"{NAMED_AS.get(name, name)}: is not supported; leave it out") as refused:
            parsed(request(endpoint, **{name: REFUSED[name]}))
        assert refused.value.code == "invalid_sampling"


@pytest.mark.parametrize(
    "more",
    [
        {"repetition_penalty": 1.0}, {"min_tokens": 0}, {"skip_special_tokens": True}, {"use_beam_search": False},
        {"add_generation_prompt": True}, {"add_special_tokens": False}, {"tool_choice": "none", "tools": None},
        {"stop": None, "stop_token_ids": [], "bad_words": []}, {"chat_template_kwargs": {}}, {"documents": []},
        {"guided_json": None}, {"extra": {"a": None, "b": [], "c": {"d": ""}}}, {"length_penalty": 1},
        {"spaces_between_special_tokens": True}, {"include_stop_str_in_output": False}, {"priority": 0},
    ],
)  # fmt: skip
def test_values_that_ask_for_nothing_fail_nothing(parsed, more):
    assert parsed(request(CHAT, **more)) == parsed(request(CHAT))


@pytest.mark.parametrize(
    ("endpoint", "more"),
    [
        (CHAT, {"repetition_penalty": 1.1}), (CHAT, {"min_tokens": 5}), (CHAT, {"skip_special_tokens": False}),
        (CHAT, {"add_special_tokens": True}), (TEXT, {"add_special_tokens": False}), (CHAT, {"stop_token_ids": [5]}),
        (CHAT, {"guided_json": {"type": "object"}}), (CHAT, {"prompt": "hi"}), (CHAT, {"add_generation_prompt": False}),
        (CHAT, {"reasoning_effort": "none"}), (CHAT, {"surprise": 0}),
    ],
)  # fmt: skip
def test_values_that_ask_for_something_that_is_not_done_fail_by_name(parsed, endpoint, more):
    (name,) = more
    with pytest.raises(RowError, match=f"{name}: is not supported; leave it out"):
        parsed(request(endpoint, **more))


def test_off_is_off_and_not_the_jobs_own(parsed):
    assert parsed(request(CHAT)).sampling.top_k == 50
    assert parsed(request(CHAT, top_k=-1)).sampling.top_k == 0
    row = {"prompt": "a", "sampling": {"top_k": -1, "repetition_penalty": 1, "min_p": None}}
    assert parsed(row).sampling.top_k == 0


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "max_output_tokens", "max_new_tokens"])
def test_a_length_has_many_names_and_one_value(parsed, name):
    assert parsed(request(CHAT, **{name: 7})).sampling.max_new_tokens == 7
    assert parsed(request(CHAT, **{name: 7, "max_tokens": 7})).sampling.max_new_tokens == 7
    if name != "max_tokens":
        with pytest.raises(DatasetError, match=r"line 1: asks for two lengths, one of them max_\w+ = \d; keep one"):
            parsed(request(CHAT, **{name: 7, "max_tokens": 8}))


def test_a_text_to_go_on_is_used_as_it_stands(parsed):
    for prompt in ("hi", ["hi"]):
        row = parsed(request(TEXT, prompt=prompt))
        assert (row.prompt, row.raw) == ("hi", True)
    assert not parsed(request(CHAT)).raw
    assert not parsed({"prompt": "hi", "url": TEXT}).raw
    without_url = {"custom_id": "a", "body": {"prompt": "hi"}}
    assert parsed(without_url) == parsed(request(TEXT))
    for prompt in ([5, 6], [[5, 6], [7]], ["a", "b"]):
        with pytest.raises(DatasetError, match="has no column 'prompt' or 'messages' whose values are text"):
            parsed(request(TEXT, prompt=prompt))
        with pytest.raises(RowError, match="must be text, not list; a row has one prompt, and token ids must be"):
            PromptRow.parse({"prompt": prompt}, 0, SPEC)


@pytest.mark.parametrize(
    ("url", "is_known"),
    [
        ("/v1/chat/completions/", True), ("https://host:8000/v1/chat/completions?x=1", True),
        ("/chat/completions", True), ("/v1/embeddings", False), ("/v1/messages", False), (7, False),
        ("http://[", False),
    ],
)  # fmt: skip
def test_an_endpoint_that_is_not_ours_is_refused(parsed, url, is_known):
    row = request(CHAT) | {"url": url}
    if is_known:
        assert parsed(row) == parsed(request(CHAT))
        return
    with pytest.raises(
        DatasetError, match=r"line 1: the request is for .*which is no endpoint of genarm \(it has: /v1"
    ):
        parsed(row)


def test_a_request_that_is_no_post_is_refused(parsed):
    with pytest.raises(DatasetError, match="line 1: the request has the method 'GET'; batch requests have POST"):
        parsed(request(CHAT) | {"method": "GET"})


SAID = {"type": "output_text", "text": "yo", "annotations": [], "logprobs": []}
REPLY = {"id": "msg_1", "type": "message", "status": "completed", "role": "assistant", "content": [SAID]}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"input": "hi"}, [("user", "hi")]),
        ({"input": "hi", "instructions": "Be brief."}, [("system", "Be brief."), ("user", "hi")]),
        (
            {"input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}, REPLY]},
            [("user", "hi"), ("assistant", "yo")],
        ),
        ({"input": [{"role": "developer", "content": "d"}]}, [("developer", "d")]),
    ],
)
def test_the_input_of_a_response_becomes_messages(parsed, body, expected):
    row = parsed(request(RESPONSES, **body, max_output_tokens=5, store=True))
    assert [(message.role, message.content) for message in row.messages] == expected
    assert row.sampling.max_new_tokens == 5
    assert row.messages[0] == Message(role=expected[0][0], content=expected[0][1])


@pytest.mark.parametrize(
    "item",
    [
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "item_reference", "id": "msg_1"},
        {"role": "user", "content": [{"type": "input_image", "image_url": "https://host/a.png"}]},
    ],
)
def test_an_item_that_is_no_message_fails_its_row(parsed, item):
    with pytest.raises(RowError, match=r"messages\.1"):
        parsed(request(RESPONSES, input=[{"role": "user", "content": "hi"}, item]))


def test_a_response_is_one_completion(parsed):
    with pytest.raises(DatasetError, match="asks for n = 1, the job makes 2 per row"):
        parsed(request(RESPONSES), samples=2)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DatasetSource(str(path))


def test_a_custom_id_twice_is_refused_before_anything_is_stored(ledger, tmp_path):
    rows = [request(CHAT, f"r{i}") for i in range(300)]
    rows[250] = request(TEXT, "r7")
    source = write(tmp_path / "batch.jsonl", rows)
    message = "batch.jsonl, line 251: the custom_id 'r7' is there twice, first in line 8; give each request its own"
    with pytest.raises(DatasetError, match=message):
        jobs.submit(ledger, jobs.NewJob(spec={}, samples=1), open_dataset(source))
    assert jobs.list_jobs(ledger) == []


def test_an_id_twice_is_a_matter_of_the_output(ledger, tmp_path):
    rows = [{"id": i % 3, "prompt": "p"} for i in range(4)]
    source = write(tmp_path / "rows.jsonl", rows)
    assert len(list(open_dataset(source))) == 4
    unique = DatasetSource(source.name, has_unique_ids=True)
    with pytest.raises(DatasetError, match=r"line 4: the id '0' is there twice, first in .*rows\.jsonl, line 1"):
        list(open_dataset(unique))
    job = filled.submit(ledger, rows, samples=1)
    filled.fill(ledger, job)
    with pytest.raises(DatasetError, match=r"two rows of the job have the id '0', .* export it as \.jsonl"):
        export(ledger, job, Export(str(tmp_path / "out.jsonl"), "openai"))
    assert not (tmp_path / "out.jsonl").exists()
    export(ledger, job, Export(str(tmp_path / "out.jsonl")))


def test_responses_come_back_as_their_client_expects(ledger, tmp_path):
    source = write(tmp_path / "batch.jsonl", [request(RESPONSES, f"r{i}") for i in range(3)])
    job = filled.submit(ledger, [row.row for row in open_dataset(source)], samples=1)
    filled.fill(ledger, job, failing={2})
    export(ledger, job, Export(str(tmp_path / "out.jsonl"), "openai"))
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["custom_id"] for line in lines] == ["r0", "r1", "r2"]
    assert lines[2]["response"] is None
    for line in lines[:2]:
        body = Response.model_validate(line["response"]["body"], strict=True)
        assert body.output_text == line["response"]["body"]["output"][0]["content"][0]["text"] != ""
        assert body.status == ("completed" if body.incomplete_details is None else "incomplete")
        assert body.usage.total_tokens == body.usage.input_tokens + body.usage.output_tokens


def test_columns_of_a_request_may_be_named(tmp_path):
    source = write(tmp_path / "batch.jsonl", [request(CHAT)])
    (row,) = open_dataset(DatasetSource(source.name, Columns(id="custom_id")))
    assert row.custom_id == "r-1"
