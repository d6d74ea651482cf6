"""Pairs are checked on entry, in all the forms that people have them; what cannot be used is named."""

import pytest

from models.training.conversations import Conversation, Turn
from models.training.preferences import BadPair, Problem, parse_preference

GOOD = {"prompt": "p", "chosen": "c", "rejected": "r"}
USER = {"role": "user", "content": "Hi"}
SYSTEM = {"role": "system", "content": "Be brief"}


def reply(text):
    return {"role": "assistant", "content": text}


def turns(*pairs):
    return Conversation(tuple(Turn(role, content) for role, content in pairs))


def test_text_keeps_its_spaces_and_other_fields_are_ignored():
    pair = parse_preference("line 3", GOOD | {"chosen": " spaced\n", "score": 3})

    assert (pair.place, pair.prompt, pair.chosen, pair.rejected) == ("line 3", "p", " spaced\n", "r")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [SYSTEM, USER], "chosen": "good", "rejected": "bad"},
        {"messages": [SYSTEM, USER], "chosen": "good", "rejected": "bad"},
        {"prompt": [SYSTEM, USER], "chosen": [reply("good")], "rejected": [reply("bad")]},
        {"chosen": [SYSTEM, USER, reply("good")], "rejected": [SYSTEM, USER, reply("bad")]},
        {"prompt": "Hi", "chosen": [SYSTEM, USER, reply("good")], "rejected": [SYSTEM, USER, reply("bad")]},
    ],
    ids=["prompt", "messages", "replies", "whole conversations", "whole conversations beside a prompt"],
)
def test_messages_give_the_same_pair_in_every_form(row):
    pair = parse_preference("row 1", row)

    assert pair.prompt == turns(("system", "Be brief"), ("user", "Hi"))
    assert (pair.chosen, pair.rejected) == ("good", "bad")


def test_transcripts_are_split_at_the_last_turn_of_the_assistant():
    before = "\n\nHuman: Hi\n\nthere\n\nAssistant: Hello\n\nHuman: Human: or not?\n\nAssistant:"

    pair = parse_preference("row 1", {"chosen": f"{before} Yes.\n\nIndeed.", "rejected": f"{before} No"})
    prompted = parse_preference("row 1", {"prompt": before, "chosen": " Yes.\n\nIndeed.", "rejected": " No"})

    assert pair.prompt == turns(("user", "Hi\n\nthere"), ("assistant", "Hello"), ("user", "Human: or not?"))
    assert (pair.chosen, pair.rejected) == ("Yes.\n\nIndeed.", "No")
    assert pair.prompt.transcript == before
    assert prompted.prompt == pair.prompt


@pytest.mark.parametrize(
    ("row", "problem", "named"),
    [
        ({"prompt": "p", "chosen": "c"}, Problem.MALFORMED, "`rejected` is missing"),
        ({"chosen": "c", "rejected": "r"}, Problem.MALFORMED, "`prompt` is missing"),
        (GOOD | {"chosen": 3}, Problem.MALFORMED, "`chosen` must be text or messages, not int"),
        (GOOD | {"prompt": 3}, Problem.MALFORMED, "`prompt` must be text or messages, not int"),
        ({"messages": "Hi", "chosen": "c", "rejected": "r"}, Problem.MALFORMED, "`messages` must be a list"),
        (GOOD | {"prompt": [{"role": "user"}]}, Problem.MALFORMED, "`prompt` has a message without"),
        (GOOD | {"chosen": [USER]}, Problem.MALFORMED, "`chosen` must end with a message of the assistant"),
        (GOOD | {"rejected": []}, Problem.MALFORMED, "`rejected` must end with"),
        (GOOD | {"prompt": " "}, Problem.EMPTY, "`prompt` is empty"),
        (GOOD | {"prompt": []}, Problem.EMPTY, "`prompt` is empty"),
        (GOOD | {"rejected": "\n"}, Problem.EMPTY, "`rejected` is empty"),
        (GOOD | {"chosen": [reply("")]}, Problem.EMPTY, "`chosen` is empty"),
        (GOOD | {"rejected": "c "}, Problem.IDENTICAL, "the same"),
        (
            {"chosen": [USER, reply("a")], "rejected": [SYSTEM, USER, reply("b")]},
            Problem.OTHER_PROMPT,
            "differ before the last turn",
        ),
        (
            {"chosen": "\n\nHuman: a\n\nAssistant: x", "rejected": "\n\nHuman: b\n\nAssistant: y"},
            Problem.OTHER_PROMPT,
            "differ before the last turn",
        ),
        ({"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: b"}, Problem.MALFORMED, "`prompt` is missing"),
        (
            {"chosen": "\n\nHuman: a\n\nAssistant:", "rejected": "\n\nHuman: a\n\nAssistant: b"},
            Problem.EMPTY,
            "`chosen` is empty",
        ),
    ],
)
def test_a_bad_pair_is_named(row, problem, named):
    bad = parse_preference("line 2", row)

    assert isinstance(bad, BadPair)
    assert (bad.place, bad.problem) == ("line 2", problem)
    assert named in str(bad)
