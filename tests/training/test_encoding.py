"""What of a pair is prompt, what is response, and what closes it."""

import pytest
import torch

from models.errors import UnsupportedModelError
from models.rendering import Renderer, closing_token
from models.spec import GenerationSpec, PromptRow
from models.training.dataset import read_data, read_pairs, split
from models.training.encoding import EncodedPair, PairEncoder, collate, common_prefix
from models.training.preferences import PreferencesError, Problem
from tests.tiny_models import make_tokenizer
from tests.training.conftest import learnable, source_of

TURNS = "{% for m in messages %}{{ m.role }}:{{ m.content }}<end>{% endfor %}"
CHAT = TURNS + "{% if add_generation_prompt %}assistant:{% endif %}"


@pytest.fixture
def encoder():
    def make(tokenizer, max_prompt_tokens=1000, max_tokens=1000):
        return PairEncoder(
            tokenizer, tokenizer.chat_template, max_prompt_tokens=max_prompt_tokens, max_tokens=max_tokens
        )

    return make


def texts(tokenizer, response):
    """The prompt's and the response's tokens of an encoded response, as text."""
    start = response.response_start
    return tokenizer.decode(response.ids[:start]), tokenizer.convert_ids_to_tokens(response.ids[start:])


def test_without_a_template_the_prompt_stands_as_it_is_and_eos_closes(merging_tokenizer, encoder, preference):
    tokenizer = merging_tokenizer()

    pair = encoder(tokenizer).encode(preference("hi", "ab", "c"))

    assert texts(tokenizer, pair.chosen) == ("hi", ["a", "b", "</s>"])
    assert texts(tokenizer, pair.rejected) == ("hi", ["c", "</s>"])


def test_with_a_template_the_prompt_is_what_the_engine_renders_and_the_turns_end_closes(
    merging_tokenizer, encoder, preference
):
    tokenizer = merging_tokenizer(template=CHAT)
    row = PromptRow.parse({"prompt": "hi"}, 0, GenerationSpec(base="b"))

    chosen = encoder(tokenizer).encode(preference("hi", "ab", "c")).chosen

    rendered = Renderer(tokenizer, CHAT, "m").prompt_ids(row, system=None, raw=False)
    assert list(chosen.ids[: chosen.response_start]) == rendered
    assert tokenizer.decode(rendered) == "user:hi<end>assistant:"
    assert tokenizer.convert_ids_to_tokens(chosen.ids[chosen.response_start :]) == ["a", "b", "<end>"]


def test_a_conversation_goes_through_the_template_as_the_engine_renders_its_messages(
    merging_tokenizer, encoder, preference
):
    tokenizer = merging_tokenizer(template=CHAT)
    conversation = [{"role": "system", "content": "be"}, {"role": "user", "content": "hi"}]
    row = PromptRow.parse({"messages": conversation}, 0, GenerationSpec(base="b"))

    chosen = encoder(tokenizer).encode(preference(conversation, "ab", "c")).chosen

    assert list(chosen.ids[: chosen.response_start]) == Renderer(tokenizer, CHAT, "m").prompt_ids(
        row, system=None, raw=False
    )
    assert texts(tokenizer, chosen) == ("system:be<end>user:hi<end>assistant:", ["a", "b", "<end>"])


def test_a_transcript_stands_as_it_is_without_a_template(merging_tokenizer, encoder, preference):
    tokenizer = merging_tokenizer()

    chosen = encoder(tokenizer).encode(preference("\n\nHuman: hi\n\nAssistant:", " ab", " c")).chosen

    assert tokenizer.decode(chosen.ids) == "\n\nHuman: hi\n\nAssistant: ab</s>"
    assert chosen.response_tokens == 4


def test_what_a_template_refuses_is_a_bad_pair(merging_tokenizer, encoder, preference):
    conversation = [{"role": "user", "content": "hi"}]
    strict = merging_tokenizer(template="{{ raise_exception('roles must alternate') }}")

    refused = encoder(strict).encode(preference(conversation, line=4))
    untemplated = encoder(merging_tokenizer()).encode(preference(conversation))

    assert str(refused) == "line 4: refused by the template: roles must alternate"
    assert untemplated.problem is Problem.REFUSED
    assert "no chat template for messages" in untemplated.detail


def test_a_token_that_merges_across_the_boundary_belongs_to_the_response(merging_tokenizer, encoder, preference):
    tokenizer = merging_tokenizer("ia")

    pair = encoder(tokenizer).encode(preference("hi", "ab", "c"))

    assert texts(tokenizer, pair.chosen) == ("h", ["ia", "b", "</s>"])
    assert texts(tokenizer, pair.rejected) == ("h", ["i", "c", "</s>"])  # on both sides, as in TRL


def test_a_first_token_is_never_rewarded_since_nothing_predicts_it(merging_tokenizer, encoder, preference):
    tokenizer = merging_tokenizer("ab")

    pair = encoder(tokenizer).encode(preference("a", "bc", "c"))

    assert tokenizer.convert_ids_to_tokens(pair.chosen.ids) == ["ab", "c", "</s>"]
    assert pair.chosen.response_start == 1


def test_a_response_that_is_closed_already_is_not_closed_twice(merging_tokenizer, encoder, preference):
    tokenizer = merging_tokenizer()

    pair = encoder(tokenizer).encode(preference("hi", "a</s>", "c"))

    assert texts(tokenizer, pair.chosen)[1] == ["a", "</s>"]


def test_closing_token_without_a_special_token_in_the_template_is_eos():
    tokenizer = make_tokenizer()

    assert closing_token(tokenizer, tokenizer.chat_template) == tokenizer.eos_token_id


def test_a_tokenizer_without_eos_is_refused(merging_tokenizer):
    tokenizer = merging_tokenizer()
    tokenizer.eos_token = None

    with pytest.raises(UnsupportedModelError, match="no EOS"):
        closing_token(tokenizer, None)


@pytest.mark.parametrize(
    ("prompt", "ids", "shared"), [([1, 2], [1, 2, 3], 2), ([1, 2], [1, 9, 3], 1), ([1, 2], [1], 1)]
)
def test_common_prefix(prompt, ids, shared):
    assert common_prefix(prompt, ids) == shared


def test_limits_count_tokens_and_long_pairs_are_bad_pairs(merging_tokenizer, encoder, preference):
    tokenizer = merging_tokenizer("aa")
    strict = encoder(tokenizer, max_prompt_tokens=4, max_tokens=8)

    fitting = strict.encode(preference("bbbb", "aa" * 3, "b"))  # 4 + 3 + EOS: 8 tokens, of 10 letters
    long_prompt = strict.encode(preference("bbbbb", "a", "b"))
    long_rejected = strict.encode(preference("bbbb", "a", "bbbb", line=7))

    assert isinstance(fitting, EncodedPair)
    assert fitting.tokens == 8
    assert long_prompt.problem is Problem.PROMPT_TOO_LONG
    assert "5 tokens, allowed are 4" in long_prompt.detail
    assert (long_rejected.place, long_rejected.problem) == ("line 7", Problem.TOO_LONG)


def test_a_batch_masks_prompt_and_padding(merging_tokenizer, encoder, preference):
    tokenizer = merging_tokenizer()
    pairs = [encoder(tokenizer).encode(one) for one in (preference("hi", "abc", "d"), preference("x", "y", "zz"))]

    batch = collate(pairs, pad_id=0)

    assert ["".join(tokenizer.convert_ids_to_tokens(row)) for row in batch["input_ids"]] == [
        "hiabc</s>",
        "xy</s><s><s><s>",
        "hid</s><s><s>",
        "xzz</s><s><s>",
    ]
    assert batch["attention_mask"].sum(1).tolist() == [6, 3, 4, 4]
    assert batch["response_mask"].int().tolist() == [
        [0, 0, 1, 1, 1, 1],
        [0, 1, 1, 0, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 1, 1, 1, 0, 0],
    ]
    assert batch["response_mask"].dtype == torch.bool


def test_a_source_counts_what_it_leaves_out(merging_tokenizer, encoder):
    source = source_of(
        [
            {"prompt": "p", "chosen": "c", "rejected": "r"},
            {"prompt": "p" * 9, "chosen": "c", "rejected": "r"},
            {"prompt": "p", "chosen": "same", "rejected": "same"},
            {"prompt": "p" * 10, "chosen": "c", "rejected": "r"},
        ]
    )

    pairs = read_pairs(source, encoder(merging_tokenizer(), max_prompt_tokens=8))

    assert str(pairs) == "pairs.jsonl: 1 pairs, left out: 2 prompt too long, 1 identical"
    assert [bad.place for bad in pairs.bad] == ["line 2", "line 3", "line 4"]


def test_a_source_without_a_usable_pair_is_refused_with_the_first_reason(merging_tokenizer, encoder):
    source = source_of([{"prompt": "p", "chosen": "", "rejected": "r"}])

    with pytest.raises(PreferencesError, match=r"no usable preference pair .line 1: empty: `chosen` is empty"):
        read_pairs(source, encoder(merging_tokenizer()))


def test_split_keeps_the_pairs_of_a_prompt_together(merging_tokenizer, encoder):
    source = source_of(learnable(20) * 2)

    one = read_data(source, None, encoder(merging_tokenizer()), eval_fraction=0.25, seed=3)
    again = read_data(source, None, encoder(merging_tokenizer()), eval_fraction=0.25, seed=3)

    held = {pair.preference.prompt_key for pair in one.held_out}
    assert len(held) == 5
    assert len(one.held_out) == 10
    assert not held & {pair.preference.prompt_key for pair in one.train}
    assert len(one.train) == 30
    assert one.held_out == again.held_out


def test_split_of_one_prompt_is_refused(merging_tokenizer, encoder, preference):
    pair = encoder(merging_tokenizer()).encode(preference())

    with pytest.raises(PreferencesError, match="share one prompt"):
        split([pair, pair], 0.5, seed=0)
