"""Pairs are checked on entry, in all the forms that people have them; what cannot be used is named."""

import pytest

from models.training.preferences import BadPair, Problem, Texts, parse_preference

GOOD = {"prompt": "p", "chosen": "c", "rejected": "r"}
USER = {"role": "user", "content": "Hi"}
SYSTEM = {"role": "system", "content": "Be brief"}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "look", "arguments": {}}}]}
FOUND = {"role": "tool", "content": "3"}


def reply(text):
    return {"role": "assistant", "content": text}


WHOLE = {"chosen": [SYSTEM, USER, reply("good")], "rejected": [SYSTEM, USER, reply("bad")]}


def test_text_keeps_its_spaces_and_other_fields_are_ignored():
    pair = parse_preference(
        "line 3", GOOD | {"chosen": " spaced\n", "score": 3, "margin": 0, "system": "", "images": []}
    )

    assert (pair.place, pair.texts) == ("line 3", Texts("p", " spaced\n", "r"))
    assert pair.chats.prompt == ({"role": "user", "content": "p"},)
    assert pair.chats.chosen == (reply(" spaced\n"),)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [SYSTEM, USER], "chosen": "good", "rejected": "bad"},
        {"messages": [SYSTEM, USER], "chosen": "good", "rejected": "bad"},
        {"messages": [SYSTEM, USER], "chosen": [reply("good")], "rejected": [reply("bad")]},
        {"prompt": [SYSTEM, USER], "chosen": [reply("good")], "rejected": [reply("bad")]},
        WHOLE,
        WHOLE | {"prompt": "Hi"},
        WHOLE | {"messages": WHOLE["chosen"]},
        {
            "prompt": [SYSTEM | {"name": None}, USER],
            "chosen": [reply("good") | {"tool_calls": None}],
            "rejected": "bad",
        },
    ],
)
def test_messages_give_the_same_pair_in_every_form(row):
    pair = parse_preference("row 1", row)

    assert pair.texts is None
    assert pair.chats.prompt == (SYSTEM, USER)
    assert (pair.chats.chosen, pair.chats.rejected) == ((reply("good"),), (reply("bad"),))


def test_a_text_beside_replies_is_what_the_user_says():
    pair = parse_preference("row 1", {"prompt": "Hi", "chosen": [reply("good")], "rejected": [reply("bad")]})

    assert (pair.chats.prompt, pair.chats.chosen) == ((USER,), (reply("good"),))


def test_what_follows_a_prompt_may_be_several_turns_and_calls_of_tools():
    chosen, rejected = [CALL, FOUND, reply("cold")], [reply("warm"), USER, reply("cold")]

    given = parse_preference(
        "row 1", {"prompt": [SYSTEM, USER], "chosen": chosen, "rejected": rejected, "tools": "[{}]"}
    )
    implicit = parse_preference("row 1", {side: [SYSTEM, USER, *turns] for side, turns in
                                          (("chosen", chosen), ("rejected", rejected))} | {"tools": [{}]})  # fmt: skip

    assert given == implicit
    assert given.chats.prompt == (SYSTEM, USER)
    assert (given.chats.chosen, given.chats.rejected) == (tuple(chosen), tuple(rejected))
    assert given.chats.tools == [{}]


def test_transcripts_are_text_and_chats():
    before = "\n\nHuman: Hi\n\nthere\n\nAssistant: Hello\n\nHuman: Human: or not?\n\nAssistant:"

    pair = parse_preference("row 1", {"chosen": f"{before} Yes.\n\nIndeed.", "rejected": f"{before} No"})
    prompted = parse_preference("row 1", {"prompt": before, "chosen": " Yes.\n\nIndeed.", "rejected": " No"})

    assert pair == prompted
    assert pair.texts == Texts(before, " Yes.\n\nIndeed.", " No")
    assert [turn["content"] for turn in pair.chats.prompt] == ["Hi\n\nthere", "Hello", "Human: or not?"]
    assert [turn["role"] for turn in pair.chats.prompt] == ["user", "assistant", "user"]
    assert (pair.chats.chosen, pair.chats.rejected) == ((reply("Yes.\n\nIndeed."),), (reply("No"),))


def test_texts_that_begin_alike_are_text_alone():
    pair = parse_preference("row 1", {"chosen": "The sky is blue", "rejected": "The sky is green"})

    assert (pair.texts, pair.chats) == (Texts("The sky is", " blue", " green"), None)


@pytest.mark.parametrize(
    ("row", "problem", "named"),
    [
        ({"prompt": "p", "chosen": "c"}, Problem.MALFORMED, "`rejected` is missing"),
        ({"chosen": "c", "rejected": "r"}, Problem.MALFORMED, "`prompt` is missing"),
        (GOOD | {"chosen": 3}, Problem.MALFORMED, "`chosen` must be text or messages, not int"),
        (GOOD | {"prompt": 3}, Problem.MALFORMED, "`prompt` must be text or messages, not int"),
        ({"messages": "Hi", "chosen": "c", "rejected": "r"}, Problem.MALFORMED, "`messages` must be a list"),
        ({"messages": [USER, reply("c")], "chosen": "c", "rejected": "r"}, Problem.MALFORMED, "ends with a reply"),
        (GOOD | {"prompt": [{"role": "user"}]}, Problem.MALFORMED, "`prompt` has a message without"),
        (GOOD | {"prompt": [{"from": "human", "value": "Hi"}]}, Problem.MALFORMED, "rename `from` and `value`"),
        (GOOD | {"prompt": [USER | {"content": [{"type": "image"}]}]}, Problem.MALFORMED, "no text (image)"),
        (GOOD | {"prompt": "\ud800"}, Problem.MALFORMED, "half of a surrogate pair"),
        (GOOD | {"prompt": '[{"role": "user", "content": "q"}]'}, Problem.MALFORMED, "spells a list of messages"),
        (GOOD | {"chosen": "[{'content': 'q', 'role': 'assistant'}]"}, Problem.MALFORMED, "spells a list of messages"),
        (GOOD | {"chosen": [USER]}, Problem.MALFORMED, "`chosen` must end with a message of the assistant"),
        (GOOD | {"rejected": []}, Problem.MALFORMED, "`rejected` must end with"),
        (GOOD | {"tools": "{"}, Problem.MALFORMED, "`tools` is text, but no JSON"),
        (GOOD | {"tools": {"name": "look"}}, Problem.MALFORMED, "`tools` must be a list"),
        (GOOD | {"chat_template_kwargs": [1]}, Problem.MALFORMED, "`chat_template_kwargs` must be an object"),
        (GOOD | {"images": ["a.png"]}, Problem.MALFORMED, "`images`: only text"),
        (GOOD | {"margin": 2.0}, Problem.MALFORMED, "`margin`: margins of single pairs"),
        (GOOD | {"system": "Be brief"}, Problem.MALFORMED, "`system`: put it into `prompt`"),
        ({"prompt": "p", "completion": "c", "label": True}, Problem.MALFORMED, "`completion` is one response"),
        ({"chosen": [USER, reply("a")], "rejected": "b"}, Problem.MALFORMED, "one of `chosen` and `rejected` is text"),
        ({"chosen": [reply("a")], "rejected": [reply("b")]}, Problem.MALFORMED, "`prompt` is missing"),
        (GOOD | {"prompt": " "}, Problem.EMPTY, "`prompt` is empty"),
        (GOOD | {"prompt": []}, Problem.EMPTY, "`prompt` is empty"),
        (GOOD | {"rejected": "\n"}, Problem.EMPTY, "`rejected` is empty"),
        (GOOD | {"rejected": ""}, Problem.EMPTY, "`rejected` is empty"),
        (GOOD | {"chosen": [reply("")]}, Problem.EMPTY, "`chosen` is empty"),
        (GOOD | {"rejected": "c "}, Problem.IDENTICAL, "the same"),
        ({"prompt": [USER], "chosen": [reply("a")], "rejected": [reply("a ")]}, Problem.IDENTICAL, "the same"),
        ({"chosen": [USER, reply("a")], "rejected": [SYSTEM, USER, reply("b")]}, Problem.OTHER_PROMPT, "differ before"),
        (WHOLE | {"prompt": "Bye"}, Problem.OTHER_PROMPT, "do not have `prompt` in them"),
        (WHOLE | {"prompt": [SYSTEM, USER]}, Problem.OTHER_PROMPT, "must begin with the assistant's turn"),
        (
            {"prompt": [SYSTEM], "chosen": [USER, reply("a")], "rejected": [USER, reply("b")]},
            Problem.OTHER_PROMPT,
            "must begin with the assistant's turn",
        ),
        (
            {"prompt": "a", "chosen": "\n\nHuman: a\n\nAssistant: x", "rejected": "\n\nHuman: a\n\nAssistant: y"},
            Problem.OTHER_PROMPT,
            "must begin with the assistant's turn",
        ),
        (
            {"chosen": "\n\nHuman: a\n\nAssistant: x", "rejected": "\n\nHuman: b\n\nAssistant: y"},
            Problem.OTHER_PROMPT,
            "differ before",
        ),
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
