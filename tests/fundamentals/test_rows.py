"""What a row may say, and how it overrides its job."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import RowError
from models.spec import GenerationSpec, Message, PromptRow

SPEC = GenerationSpec.parse(
    {
        "base": "b",
        "arms": [{"name": "kind", "ref": "r", "weight": 2}, {"name": "brief", "ref": "s", "weight": -0.5}],
        "sampling": {"temperature": 0.7, "seed": 11, "stop": ["END"]},
    }
)
SPEC_WEIGHTS = {"kind": 2.0, "brief": -0.5}
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(10**400)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "kind", "top_p", "stop", "other"]), inner, max_size=3)
    ),
    max_leaves=6,
)


def parse(**row: Any) -> PromptRow:
    return PromptRow.parse(row, 3, SPEC)


def test_a_prompt_alone_takes_all_from_its_job() -> None:
    row = parse(prompt="hello")
    assert (row.index, row.prompt, row.messages) == (3, "hello", None)
    assert row.weights == SPEC_WEIGHTS
    assert row.sampling == SPEC.sampling


def test_other_columns_are_ignored() -> None:
    assert parse(prompt="hello", id="x", label=[1, 2]) == parse(prompt="hello")


def test_messages_go_before_a_prompt() -> None:
    row = parse(prompt="hello", messages=[{"role": "user", "content": "hi"}])
    assert row.prompt is None
    assert row.messages == (Message(role="user", content="hi"),)


def test_weights_override_by_name() -> None:
    assert parse(prompt="p", weights={"brief": 3}).weights == {"kind": 2.0, "brief": 3.0}
    assert parse(prompt="p", weights={}).weights == parse(prompt="p", weights=None).weights == SPEC_WEIGHTS


def test_sampling_overrides_by_field() -> None:
    sampling = parse(prompt="p", sampling={"temperature": 0, "top_k": None}).sampling
    assert sampling == SPEC.sampling.model_copy(update={"temperature": 0.0})


def test_a_row_does_not_change_its_job() -> None:
    before = SPEC.model_dump_json()
    parse(prompt="p", weights={"kind": 9}, sampling={"seed": 1, "stop": ["x"]})
    assert SPEC.model_dump_json() == before
    assert parse(prompt="p").weights == SPEC_WEIGHTS


@pytest.mark.parametrize(
    ("row", "code", "named"),
    [
        ({}, "invalid_prompt", "`prompt`"),
        ({"prompt": None}, "invalid_prompt", "`prompt`"),
        ({"prompt": 7}, "invalid_prompt", "`prompt` must be text, not int"),
        ({"prompt": ["a"]}, "invalid_prompt", "`prompt` must be text, not list"),
        ({"prompt": " \n"}, "invalid_prompt", "`prompt` is empty"),
        ({"prompt": "lone surrogate \ud800"}, "invalid_prompt", "prompt: "),
        ({"messages": []}, "invalid_prompt", "`messages`"),
        ({"messages": "hi"}, "invalid_prompt", "`messages`"),
        ({"messages": ["hi"]}, "invalid_prompt", "messages.0"),
        ({"messages": [{"role": "user"}]}, "invalid_prompt", "messages.0.content"),
        ({"messages": [{"role": "", "content": "x"}]}, "invalid_prompt", "messages.0.role"),
        ({"messages": [{"role": "user", "content": 5}]}, "invalid_prompt", "messages.0.content"),
        ({"prompt": "p", "weights": 2}, "invalid_weights", "`weights` must be an object"),
        ({"prompt": "p", "weights": {"rude": 1}}, "invalid_weights", "'rude', which is no ARM of this job"),
        ({"prompt": "p", "weights": {"kind": "2"}}, "invalid_weights", "'kind'"),
        ({"prompt": "p", "weights": {"kind": True}}, "invalid_weights", "'kind'"),
        ({"prompt": "p", "weights": {"kind": None}}, "invalid_weights", "'kind'"),
        ({"prompt": "p", "weights": {"kind": float("nan")}}, "invalid_weights", "'kind'"),
        ({"prompt": "p", "weights": {"kind": float("-inf")}}, "invalid_weights", "'kind'"),
        ({"prompt": "p", "weights": {"kind": 10_001}}, "invalid_weights", "'kind'"),
        ({"prompt": "p", "weights": {"kind": 10**400}}, "invalid_weights", "'kind'"),
        ({"prompt": "p", "sampling": [1]}, "invalid_sampling", "`sampling` must be an object"),
        ({"prompt": "p", "sampling": {"top_p": 0}}, "invalid_sampling", "top_p: "),
        ({"prompt": "p", "sampling": {"warmth": 1}}, "invalid_sampling", "warmth: "),
        ({"prompt": "p", "sampling": {"max_new_tokens": "few"}}, "invalid_sampling", "max_new_tokens: "),
    ],
)
def test_a_wrong_row_has_a_code_and_names_its_field(row: dict[str, Any], code: str, named: str) -> None:
    with pytest.raises(RowError) as refused:
        PromptRow.parse(row, 0, SPEC)
    assert refused.value.code == code
    assert named in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_unknown_arm_is_told_the_known_ones() -> None:
    with pytest.raises(RowError, match=r"it has: kind, brief"):
        parse(prompt="p", weights={"rude": 1})
    with pytest.raises(RowError, match=r"it has: none"):
        PromptRow.parse({"prompt": "p", "weights": {"rude": 1}}, 0, GenerationSpec.parse({"base": "b"}))


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.dictionaries(st.sampled_from(["prompt", "messages", "weights", "sampling", "id"]), JSON, max_size=5))
def test_whatever_json_says_is_a_row_or_a_row_error(row: dict[str, Any]) -> None:
    try:
        parsed = PromptRow.parse(row, 0, SPEC)
    except RowError as error:
        assert error.code in {"invalid_prompt", "invalid_weights", "invalid_sampling"}
        assert "\n" not in str(error)
    else:
        assert set(parsed.weights) == set(SPEC_WEIGHTS)
