"""The stop matcher finds what a look at the whole text would find, at the same token."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.stopping import StopMatcher

SILENT = 256
"""A token that adds no text, as special tokens do."""


def decode(tokens: Sequence[int]) -> str:
    """Each token is a byte, but for SILENT."""
    return bytes(token for token in tokens if token != SILENT).decode(errors="replace")


def decode_words(tokens: Sequence[int]) -> str:
    """Every token is a space and a letter; the text's first space is dropped, as SentencePiece decoders do."""
    return "".join(f" {chr(token)}" for token in tokens).removeprefix(" ")


def first_stop(tokens: Sequence[int], stops: Sequence[str]) -> tuple[int, str] | None:
    """How many tokens bring the first stop string, and the text before it."""
    for count in range(1, len(tokens) + 1):
        text = decode(tokens[:count])
        if found := [text.index(stop) for stop in stops if stop in text]:
            return count, text[: min(found)]
    return None


TOKENS = st.lists(st.sampled_from([*"ab漢é".encode(), ord("a"), ord("b"), SILENT]), max_size=40)
STOPS = st.lists(st.text(alphabet="ab漢é", min_size=1, max_size=4), min_size=1, max_size=3)


@settings(deadline=None, derandomize=True, max_examples=500)
@given(TOKENS, STOPS)
def test_finds_the_first_stop_as_it_is_completed(tokens: list[int], stops: list[str]) -> None:
    matcher = StopMatcher(stops, decode)
    found = None
    for count in range(1, len(tokens) + 1):
        if (text := matcher.text_before_stop(tokens[:count])) is not None:
            found = count, text
            break
    assert found == first_stop(tokens, stops)


@pytest.mark.parametrize(
    ("text", "stops", "before"),
    [
        ("one two", ["two"], "one "),
        ("one two three", ["three", "two"], "one "),
        ("one", ["one"], ""),
        ("aaa", ["aa"], ""),
        ("x END", ["END", "x END"], ""),
        ("naïve 漢字 end", ["漢字"], "naïve "),
        ("naïve", ["ï"], "na"),
        ("nothing here", ["nowhere"], None),
        ("anything", [], None),
    ],
)
def test_text_ends_before_the_earliest_stop(text: str, stops: list[str], before: str | None) -> None:
    assert StopMatcher(stops, decode).text_before_stop(list(text.encode())) == before


def test_half_a_character_is_no_match() -> None:
    matcher = StopMatcher(["漢"], decode)
    first, second, third = "漢".encode()
    assert matcher.text_before_stop([first, second]) is None
    assert matcher.text_before_stop([first, second, third]) == ""


def test_a_space_that_the_decoder_drops_at_the_start_is_still_found_inside() -> None:
    matcher = StopMatcher([" b"], decode_words)
    assert matcher.text_before_stop([ord("b")]) is None
    assert matcher.text_before_stop([ord(c) for c in "aaaaaaaaab"]) == " ".join("aaaaaaaaa")


def test_silent_tokens_do_not_push_a_match_out_of_sight() -> None:
    tokens = [ord("a"), *[SILENT] * 50, ord("b")]
    assert StopMatcher(["ab"], decode).text_before_stop(tokens) == ""


def test_looks_at_the_end_of_a_long_response_alone() -> None:
    seen: list[int] = []

    def counting(tokens: list[int]) -> str:
        seen.append(len(tokens))
        return decode(tokens)

    assert StopMatcher(["END"], counting).text_before_stop([ord("x")] * 10_000) is None
    assert max(seen) < 20
