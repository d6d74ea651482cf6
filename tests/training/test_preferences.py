"""Pairs are checked on entry: what cannot be used is counted and named, what cannot be read is refused."""

import pytest

from models.training.preferences import PreferencesError, Problem, read_preferences

GOOD = {"prompt": "p", "chosen": "c", "rejected": "r"}


def test_good_pairs_keep_their_text_and_their_line(write_jsonl):
    path = write_jsonl([GOOD, "", GOOD | {"chosen": " spaced\n", "score": 3}])

    pairs = read_preferences(path).pairs

    assert [(pair.line, pair.chosen) for pair in pairs] == [(1, "c"), (3, " spaced\n")]


@pytest.mark.parametrize(
    ("row", "problem", "named"),
    [
        (["p", "c", "r"], Problem.MALFORMED, "not a JSON object"),
        ({"prompt": "p", "chosen": "c"}, Problem.MALFORMED, "`rejected` is missing"),
        (GOOD | {"chosen": None}, Problem.MALFORMED, "`chosen` must be text, not NoneType"),
        (GOOD | {"prompt": " "}, Problem.EMPTY, "`prompt` is empty"),
        (GOOD | {"rejected": "\n"}, Problem.EMPTY, "`rejected` is empty"),
        (GOOD | {"rejected": "c "}, Problem.IDENTICAL, "the same"),
    ],
)
def test_a_bad_pair_is_named_and_the_others_are_kept(write_jsonl, row, problem, named):
    preferences = read_preferences(write_jsonl([GOOD, row, GOOD]))

    assert [pair.line for pair in preferences.pairs] == [1, 3]
    (bad,) = preferences.bad
    assert (bad.line, bad.problem) == (2, problem)
    assert named in str(bad)


def test_a_broken_line_is_refused_by_its_number(write_jsonl):
    path = write_jsonl([GOOD, '{"prompt": "p", "cho'])

    with pytest.raises(PreferencesError, match=r"pairs\.jsonl, line 2: is not JSON"):
        read_preferences(path)


def test_a_missing_file_and_a_binary_file_are_refused_in_one_line(tmp_path):
    binary = tmp_path / "pairs.bin"
    binary.write_bytes(b"\xff\xfe\x00")

    with pytest.raises(PreferencesError, match="cannot be read \\(No such file"):
        read_preferences(tmp_path / "nothing.jsonl")
    with pytest.raises(PreferencesError, match="not UTF-8"):
        read_preferences(binary)
