"""Chat templates render as transformers renders them, on any day, and within bounds."""

import datetime
import inspect
import time
from typing import Any

import pytest

from models import templates
from models.errors import RowError, SpecError, UnsupportedModelError
from models.rendering import Renderer, closing_token, writes_replies
from models.spec import RESERVED_KWARGS, GenerationSpec, PromptRow
from models.template_limits import TemplateLimitError
from models.templates import ChatTemplates, choose, render, variables
from tests.fundamentals.chat_templates import COLLECTION
from tests.tiny_models import TEMPLATE, make_tokenizer

DAY = datetime.date(2024, 2, 29)
USER = {"role": "user", "content": "  Hi <there> & 'you',\nnaïve 漢字\n"}
SYSTEM = {"role": "system", "content": "Be brief."}
REPLY = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nWell, {{ 7 }}."}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "It's <the> weather",
        "parameters": {
            "type": "object",
            "properties": {
                "places": {"type": "array", "items": {"type": "string"}},
                "unit": {"type": "string", "enum": ["°C", "°F"]},
            },
        },
    },
}
ROWS: dict[str, dict[str, Any]] = {
    "prompt": {"prompt": "What is it?"},
    "system": {"messages": [SYSTEM, USER]},
    "turns": {"messages": [USER, REPLY, USER]},
    "all": {"messages": [SYSTEM, USER, REPLY, USER, REPLY, USER]},
    "odd": {"messages": [REPLY, USER, USER]},
    "tools": {"messages": [SYSTEM, USER], "tools": [TOOL]},
    "documents": {"messages": [USER], "documents": [{"title": "A", "text": "B & c"}]},
    "variables": {
        "messages": [USER],
        "chat_template_kwargs": {"enable_thinking": False, "thinking": True, "date_string": "1 May", "eos_token": "!"},
    },
}
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|eot_id|>", "<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]"]


class LeapDay(datetime.datetime):
    """Whatever the time zone."""

    @classmethod
    def now(cls, tz: Any = None) -> "LeapDay":
        return cls(DAY.year, DAY.month, DAY.day)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    made = make_tokenizer()
    made.add_tokens(SPECIAL, special_tokens=True)
    return made


@pytest.fixture
def on_the_leap_day(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", LeapDay)


def row_of(fields: dict[str, Any], day: datetime.date | None = DAY, **spec: Any) -> PromptRow:
    return PromptRow.parse(fields, 0, GenerationSpec.parse({"base": "b", "date": day, **spec}))


@pytest.mark.usefixtures("on_the_leap_day")
@pytest.mark.parametrize("fields", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("name", COLLECTION)
def test_ids_are_those_of_transformers(tokenizer: Any, name: str, fields: dict[str, Any]) -> None:
    renderer = Renderer(tokenizer, COLLECTION[name], "tiny")
    messages = fields.get("messages") or [{"role": "user", "content": fields["prompt"]}]
    given = {key: fields[key] for key in ("tools", "documents") if key in fields}
    given |= fields.get("chat_template_kwargs", {})

    def expected(**how: Any) -> Any:
        return tokenizer.apply_chat_template(
            messages, chat_template=COLLECTION[name], add_generation_prompt=True, **given, **how
        )

    try:
        ids = expected(return_dict=False)
    except Exception as error:
        with pytest.raises(RowError, match="refuses the messages") as refused:
            renderer.prompt_ids(row_of(fields), system=None, raw=False)
        assert " ".join(str(error).split()) in str(refused.value)
        return
    assert renderer.prompt_ids(row_of(fields), system=None, raw=False) == ids
    response = "It is so."
    whole = tokenizer(expected(tokenize=False) + response, add_special_tokens=False)["input_ids"]
    found = renderer.response_ids(row_of(fields), response, system=None, raw=False, is_closed=False)
    assert ids + found == whole


@pytest.mark.usefixtures("on_the_leap_day")
@pytest.mark.parametrize("name", COLLECTION)
def test_any_message_is_rendered_as_transformers_does(tokenizer: Any, name: str) -> None:
    """Parts of contents, tool calls, reasoning under its several names, nulls."""
    parts = [{"type": "text", "text": " a "}, {"type": "image"}, {"type": "text", "text": "b"}]
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": None}}}
    for messages in (
        [{"role": "user", "content": parts}],
        [USER, {"role": "assistant", "content": "so", "tool_calls": [call]}, {"role": "tool", "content": "1"}],
        [USER, {"role": "assistant", "content": "so", "reasoning": "hm", "tool_calls": None}],
        [USER, {"role": "assistant", "content": None, "thinking": "hm"}],
    ):
        try:
            expected = tokenizer.apply_chat_template(messages, chat_template=COLLECTION[name], tokenize=False)
        except Exception as error:
            with pytest.raises(type(error)):
                render(COLLECTION[name], messages, tokenizer, day=DAY, add_generation_prompt=False)
        else:
            assert render(COLLECTION[name], messages, tokenizer, day=DAY, add_generation_prompt=False) == expected


def test_todays_date_is_the_jobs(tokenizer: Any) -> None:
    text = Renderer(tokenizer, COLLECTION["dated"], "tiny")

    def rendered(day: str) -> str:
        return str(tokenizer.decode(text.prompt_ids(row_of({"prompt": "x"}, day), system=None, raw=False)))

    assert rendered("2024-02-29") == "2024-02-29 Thursday, week 09<29/02>userx"
    assert rendered("2027-01-01") == "2027-01-01 Friday, week 00<01/01>userx"


def test_without_a_date_it_is_today_in_utc(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever time zone the process has."""
    for zone in ("Pacific/Kiritimati", "Etc/GMT+12"):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        before = datetime.datetime.now(datetime.UTC).date()
        rendered = render("{{ strftime_now('%Y-%m-%d') }}", [USER], tokenizer)
        assert rendered in {str(before), str(datetime.datetime.now(datetime.UTC).date())}
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("own", "wanted", "expected"),
    [
        ("T", None, ("T", "T")),
        (None, None, None),
        ({}, None, None),
        ({"default": "D", "rag": "R"}, None, ("D", "D")),
        ({"default": "D", "tool_use": "U"}, None, ("D", "U")),
        ({"default": "D", "tool_use": "U"}, "default", ("D", "D")),
        ({"default": "D", "rag": "R"}, "rag", ("R", "R")),
        ({"default": "D", "rag": "R"}, "{{ x }}", ("{{ x }}", "{{ x }}")),
        (None, "{{ x }}", ("{{ x }}", "{{ x }}")),
    ],
)
def test_the_template_is_the_one_that_transformers_would_choose(own: Any, wanted: Any, expected: Any) -> None:
    chosen = choose(own, wanted, "m")
    assert chosen == (ChatTemplates(*expected) if expected else None)
    if chosen and not (wanted and own is None):
        tokenizer = make_tokenizer()
        tokenizer.chat_template = own
        assert tokenizer.get_chat_template(wanted) == chosen.text
        assert tokenizer.get_chat_template(wanted, tools=[{}]) == chosen.tool_use


@pytest.mark.parametrize(
    ("own", "wanted", "named"),
    [
        ({"rag": "R", "b": "B"}, None, "several chat templates (b, rag)"),
        ({"default": "D", "rag": "R"}, "rga", "no chat template named 'rga'; it has: default, rag"),
        ("T", "rag", "it has none with a name"),
        (None, "rag", "it has none with a name"),
    ],
)
def test_a_template_that_is_not_there_is_refused_with_those_that_are(own: Any, wanted: Any, named: str) -> None:
    with pytest.raises(UnsupportedModelError) as refused:
        choose(own, wanted, "m")
    assert named in str(refused.value)


def test_rows_with_tools_take_the_template_for_tools(tokenizer: Any) -> None:
    chosen = ChatTemplates("plain", "{{ tools[0].function.name }}")
    renderer = Renderer(tokenizer, chosen, "tiny")
    with_tools = renderer.prompt_ids(row_of(ROWS["tools"]), system=None, raw=False)
    assert tokenizer.decode(with_tools) == "weather"
    assert tokenizer.decode(renderer.prompt_ids(row_of(ROWS["prompt"]), system=None, raw=False)) == "plain"
    assert "tools" in renderer.variables


def test_a_rows_variables_go_before_the_jobs(tokenizer: Any) -> None:
    renderer = Renderer(tokenizer, "{{ a }}{{ b }}{{ c }}", "tiny")
    row = row_of({"prompt": "x", "chat_template_kwargs": {"b": 5, "c": None}}, chat_template_kwargs={"a": 1, "b": 2})
    assert tokenizer.decode(renderer.prompt_ids(row, system=None, raw=False)) == "15"


def test_variables_that_a_template_reads() -> None:
    assert {"messages", "add_generation_prompt", "enable_thinking"} <= variables(COLLECTION["qwen_3"])
    assert {"date_string", "tools", "custom_tools"} <= variables(COLLECTION["llama_3"])
    assert "strftime_now" not in variables(COLLECTION["llama_3"])
    assert variables("{% for %}") == frozenset()


def test_no_variable_of_a_job_takes_the_place_of_an_argument_of_transformers(tokenizer: Any) -> None:
    """A new one that transformers brings must be added here."""
    arguments = {
        name
        for name, one in inspect.signature(tokenizer.apply_chat_template).parameters.items()
        if one.kind is not one.VAR_KEYWORD
    }
    assert arguments | {"messages"} == RESERVED_KWARGS
    for name in RESERVED_KWARGS:
        with pytest.raises(SpecError, match=f"chat_template_kwargs: '{name}'"):
            GenerationSpec.parse({"base": "b", "chat_template_kwargs": {name: True}})


@pytest.mark.parametrize("kwargs", [{"a b": 1}, {"": 1}, [], "x", {"a": float("nan")}, {"a": "\ud800"}, {"a": {1}}])
def test_variables_are_a_json_object_of_names(kwargs: Any) -> None:
    with pytest.raises(SpecError, match="chat_template_kwargs"):
        GenerationSpec.parse({"base": "b", "chat_template_kwargs": kwargs})
    with pytest.raises(RowError, match="chat_template_kwargs"):
        row_of({"prompt": "x", "chat_template_kwargs": kwargs or "x"})


@pytest.mark.parametrize("kwargs", [None, {}, {"enable_thinking": None}])
def test_variables_that_ask_for_nothing(kwargs: Any) -> None:
    assert row_of({"prompt": "x", "chat_template_kwargs": kwargs, "tools": [], "documents": None}).for_template == ()


@pytest.mark.parametrize(
    ("template", "closing", "writes"),
    [
        (TEMPLATE, "</s>", True),
        (COLLECTION["chatml"], "<|im_end|>", True),
        (COLLECTION["llama_3"], "<|eot_id|>", True),
        (COLLECTION["gemma"], "<end_of_turn>", True),
        ("{% for m in messages if m.role == 'user' %}Q: {{ m.content }}<|im_end|>{% endfor %}A:", "</s>", False),
        ("{% if messages[0].content is string %}{{ raise_exception('parts!') }}{% endif %}", "</s>", True),
        ("{% if messages[1] is defined %}{{ raise_exception('one turn!') }}{% endif %}x", "</s>", True),
        ("{% for %}", "</s>", True),
    ],
)
def test_what_closes_a_response(tokenizer: Any, template: str, closing: str, writes: bool) -> None:
    """EOS, where the template leaves replies out or refuses them."""
    assert tokenizer.convert_ids_to_tokens(closing_token(tokenizer, template)) == closing
    assert writes_replies(tokenizer, template) is writes


def test_a_row_whose_replies_the_template_leaves_out_is_refused(tokenizer: Any) -> None:
    renderer = Renderer(tokenizer, "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", "tiny")
    with pytest.raises(RowError, match="'tiny' leaves the assistant's turns out"):
        renderer.prompt_ids(row_of(ROWS["turns"]), system=None, raw=False)
    assert renderer.prompt_ids(row_of(ROWS["prompt"]), system=None, raw=False)


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for i in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% set ns = namespace(s='ab') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{% set ns = namespace(s='ab') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% set ns = namespace(n=3) %}{% for i in range(99) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
        "{% for i in range(99999) %}" + "x" * 9999 + "{% endfor %}",
        "{% set x %}{% for i in range(99999) %}{{ 'a' * 9999 }}{% endfor %}{% endset %}",
        "{{ 9 ** (9 ** 9) }}",
        "{{ 'a' * 10 ** 12 }}",
        "{{ [0] * 10 ** 12 }}",
        "{{ 'a' | center(10 ** 12) }}",
        "{{ 'a'.center(10 ** 12) }}",
        "{{ 'a'.ljust(width=10 ** 12) if false else 'a'.rjust(10 ** 12) }}",
        "{{ '%1000000000000s' | format('a') }}",
        "{{ '%1000000000000s' % 'a' }}",
        "{{ '%*s' % (10 ** 9, 'a') }}",
        "{{ '{:1000000000000}'.format(1) }}",
        "{{ '{:{w}}'.format(1, w=10 ** 9) }}",
        "{{ messages | tojson(indent=10 ** 9) }}",
        "{% set a = 'a' * 99999 %}{{ a | replace('a', a) }}{{ a.replace('a', a) }}",
        "{% set a = 'a' * 99999 %}{{ range(99999) | list | join(a) }}",
        "{% set a = 'a' * 99999 %}{{ a.join(range(99999) | map('string') | list) }}",
        "{{ strftime_now('%d' * 9999) }}",
    ],
)
def test_a_template_without_end_is_stopped(tokenizer: Any, template: str) -> None:
    with pytest.raises(TemplateLimitError):
        render(template, [USER], tokenizer)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ namespace.__init__.__globals__.x }}",
        "{{ raise_exception.__globals__.x }}",
        "{{ strftime_now.__globals__.x }}",
        "{% include 'x' %}",
        "{{ self.__init__.x }}",
    ],
)
def test_a_template_stays_in_its_sandbox(tokenizer: Any, template: str) -> None:
    renderer = Renderer(tokenizer, template + "{{ 1 / 0 }}", "tiny")
    with pytest.raises(RowError, match="refuses the messages") as refused:
        renderer.prompt_ids(row_of(ROWS["prompt"]), system=None, raw=False)
    assert "division" not in str(refused.value)


def test_a_spec_keeps_a_name_apart_from_a_template() -> None:
    assert templates.is_template_name("tool_use")
    assert not templates.is_template_name("{{ x }}")
    assert not templates.is_template_name("a.jinja")
