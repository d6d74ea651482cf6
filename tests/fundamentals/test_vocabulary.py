"""Which ids models share, and which pairs are refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import IncompatibleArmError
from models.vocabulary import Vocabulary, differing_tokens, require_fit, shared_ids
from tests.tiny_models import make_tokenizer

VOCABULARIES = st.lists(
    st.dictionaries(st.integers(0, 12), st.just("t"), min_size=1).map(Vocabulary), min_size=1, max_size=4
)


def test_rows_of_the_head_without_a_token_are_no_part_of_it() -> None:
    tokenizer = make_tokenizer(words=["yes", "no"])
    assert Vocabulary.of(tokenizer, rows=100).tokens == {0: "<pad>", 1: "<s>", 2: "</s>", 3: "yes", 4: "no"}


def test_tokens_without_a_row_of_the_head_are_no_part_of_it() -> None:
    tokenizer = make_tokenizer(words=["yes", "no"], extra=["<new>"])
    vocabulary = Vocabulary.of(tokenizer, rows=5)
    assert vocabulary.size == 5
    assert "<new>" not in vocabulary.tokens.values()


def test_size_and_holes() -> None:
    vocabulary = Vocabulary({0: "a", 1: "b", 4: "c"})
    assert (vocabulary.size, vocabulary.holes) == (5, (2, 3))
    assert (Vocabulary({}).size, Vocabulary({}).holes) == (0, ())


@settings(deadline=None, derandomize=True)
@given(VOCABULARIES)
def test_shared_ids_are_those_of_all(vocabularies: list[Vocabulary]) -> None:
    size, excluded = shared_ids(vocabularies)
    shared = set(range(size)) - set(excluded)
    assert shared == set.intersection(*(set(vocabulary.tokens) for vocabulary in vocabularies))


def test_an_added_token_on_one_side_fits() -> None:
    plain, added = Vocabulary({0: "a", 1: "b"}), Vocabulary({0: "a", 1: "b", 2: "<new>"})
    require_fit(plain, added, "base", "arm")
    require_fit(added, plain, "base", "arm")
    assert shared_ids([plain, added]) == (2, ())


def test_a_refusal_names_the_tokens_that_differ() -> None:
    base, arm = Vocabulary({0: "a", 1: "b", 2: "c"}), Vocabulary({0: "a", 1: "B", 3: "d"})
    assert differing_tokens(base, arm) == [(1, "b", "B")]
    with pytest.raises(IncompatibleArmError) as refused:
        require_fit(base, arm, "some/base", "kind")
    message = str(refused.value)
    assert "ARM 'kind' does not share the tokenizer of base 'some/base'" in message
    assert "id 1 is 'b' in the base, 'B' in the ARM" in message
    assert "more" not in message
    assert "\n" not in message


def test_a_refusal_counts_what_it_does_not_show() -> None:
    base, arm = (Vocabulary({index: f"{side}{index}" for index in range(10)}) for side in "ab")
    with pytest.raises(IncompatibleArmError, match="and 7 more;"):
        require_fit(base, arm, "base", "arm")


def test_ids_that_the_base_reserves_decide_nothing_and_are_not_generated() -> None:
    base = Vocabulary({0: "a", 1: "<|reserved_special_token_7|>", 2: "<unused3>", 3: "b"})
    arm = Vocabulary({0: "a", 1: "<|im_start|>", 2: "<tool>", 3: "b"})
    require_fit(base, arm, "base", "arm")
    assert shared_ids([base, arm]) == (4, (1, 2))
    with pytest.raises(IncompatibleArmError, match="id 1 is"):
        require_fit(arm, base, "base", "arm")
    with pytest.raises(IncompatibleArmError, match="id 3"):
        require_fit(base, Vocabulary({0: "a", 1: "<|im_start|>", 3: "c"}), "base", "arm")
