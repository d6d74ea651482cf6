"""Messages as SDKs and datasets write them."""

import pytest
from openai.types.chat import ChatCompletionMessage
from transformers import PreTrainedTokenizerFast

from models.errors import RowError
from models.rendering import Renderer
from models.spec import GenerationSpec, Message, PromptRow
from tests.tiny_models import make_tokenizer

SPEC = GenerationSpec.parse({"base": "b"})
USER = {"role": "user", "content": "hi"}
REPLY = {"role": "assistant", "content": "yo"}


def parse(*messages):
    return PromptRow.parse({"messages": list(messages)}, 0, SPEC).messages


def test_a_reply_that_the_sdk_dumped_is_a_message():
    dumped = ChatCompletionMessage(role="assistant", content="yo", annotations=[]).model_dump()
    assert {"refusal", "annotations", "audio", "function_call", "tool_calls"} <= dumped.keys()
    assert parse(USER, dumped) == (Message(**USER), Message(**REPLY))


@pytest.mark.parametrize(
    "more",
    [
        {"name": None}, {"name": ""}, {"tool_calls": []}, {"function_call": {}}, {"provider_fields": {"refusal": None}},
        {"type": "message", "id": "msg_1", "status": "completed"}, {"toxic": False}, {"reasoning_content": None},
    ],
)  # fmt: skip
def test_fields_that_say_nothing_change_nothing(more):
    assert parse(USER, REPLY | more) == (Message(**USER), Message(**REPLY))


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"tool_calls": [{"id": "c", "type": "function"}]}, "tool_calls"),
        ({"function_call": {"name": "f", "arguments": "{}"}}, "function_call"),
        ({"refusal": "no"}, "refusal"),
        ({"audio": {"id": "a"}}, "audio"),
        ({"tool_call_id": "c"}, "tool_call_id"),
        ({"annotations": [{"type": "url_citation"}]}, "annotations"),
        ({"language": "English"}, "language"),
        ({"turn": 0}, "turn"),
        ({"type": "function_call"}, "type"),
        ({"name": 5}, "name"),
    ],
)
def test_fields_that_say_something_unknown_fail_by_name(more, named):
    with pytest.raises(RowError, match=rf"^messages\.1\.{named}: ") as refused:
        parse(USER, REPLY | more)
    assert refused.value.code == "invalid_prompt"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"type": "image_url", "image_url": {"url": "x"}}], "a part of type 'image_url'; models here take text alone"),
        ([{"type": "text", "text": "a"}, {"type": "input_audio"}], "a part of type 'input_audio'"),
        (["hi"], "a part of type 'str'"),
        ([{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}], "one text, or parts with a `type`"),
        ([{"type": "text"}], "one text, or parts"),
        ([], "one text, or parts"),
    ],
)
def test_content_that_is_no_text_is_named(content, message):
    with pytest.raises(RowError, match=rf"^messages\.0: its content .*{message}"):
        parse({"role": "user", "content": content})


NAMES = "{% for m in messages %}{{ m.role }}{% if m.name %}({{ m.name }}){% endif %}:{{ m.content }};{% endfor %}"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


def rendered(tokenizer, template, *messages):
    row = PromptRow.parse({"messages": list(messages)}, 0, SPEC)
    renderer = Renderer(tokenizer, template, "m")
    return renderer.prompt_ids(row, system=None, raw=False)


def ids_of(tokenizer, template, *messages):
    return list(tokenizer.apply_chat_template(list(messages), chat_template=template)["input_ids"])


def test_a_name_and_reasoning_reach_the_template_as_in_transformers(tokenizer):
    template = NAMES.replace("{{ m.content }}", "{{ m.content }}{{ m.reasoning_content or '' }}")
    messages = ({**USER, "name": "bob"}, {**REPLY, "reasoning_content": "hi hi"}, USER)
    assert rendered(tokenizer, template, *messages) == ids_of(tokenizer, template, *messages)
    assert rendered(tokenizer, template, USER) != rendered(tokenizer, template, {**USER, "name": "yo"})


def test_a_developer_is_the_system_where_the_template_knows_no_developer(tokenizer):
    developer, system = {"role": "developer", "content": "yo"}, {"role": "system", "content": "yo"}
    assert rendered(tokenizer, NAMES, developer, USER) == ids_of(tokenizer, NAMES, system, USER)
    knows = NAMES.replace("{{ m.role }}", "{{ 'hi' if m.role == 'developer' else m.role }}")
    assert rendered(tokenizer, knows, developer, USER) == ids_of(tokenizer, knows, developer, USER)
    assert rendered(tokenizer, knows, developer, USER) != ids_of(tokenizer, knows, system, USER)
