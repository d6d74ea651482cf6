"""Pairs are trained on token by token as TRL's DPOTrainer would, or refused: in every form, with real templates."""

import json
import re
from pathlib import Path

import pytest
import trl
from tokenizers.processors import TemplateProcessing

from models.training.encoding import EncodedPair, PairEncoder, collate
from models.training.preferences import BadPair, parse_preference
from tests.tiny_models import TEMPLATE, make_tokenizer
from tests.training.trl_reference import collated, tokenised

TEMPLATES = {path.stem: path.read_text() for path in (Path(trl.__file__).parent / "chat_templates").glob("*.jinja")}
"""TRL carries the templates of the models that people train."""
BASES = sorted(name for name in TEMPLATES if not name.endswith("_training"))
SPECIAL = re.compile(r"<[|｜][^<>|｜\s]+[|｜]>|<(?:start|end)_of_turn>|<turn\|>|<\|turn>|\[/?INST\]")


def user(content):
    return {"role": "user", "content": content}


def says(content, **fields):
    return {"role": "assistant", "content": content, **fields}


SYSTEM = {"role": "system", "content": "Be brief"}
CALL = says(
    "", tool_calls=[{"type": "function", "id": "abcdefghi", "function": {"name": "look", "arguments": {"a": 1}}}]
)
FOUND = {"role": "tool", "tool_call_id": "abcdefghi", "name": "look", "content": '{"t": 3}'}
PARAMETERS = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
TOOLS = [{"type": "function", "function": {"name": "look", "description": "Look it up", "parameters": PARAMETERS}}]
CHATS = {
    "a reply": {"prompt": [user("Hi there")], "chosen": [says("good one")], "rejected": [says("bad")]},
    "blanks": {"prompt": [user(" Hi ")], "chosen": [says(" good one\n")], "rejected": [says("\nbad")]},
    "replies alike": {"prompt": [user("Hi")], "chosen": [says("I say yes")], "rejected": [says("I say no")]},
    "system": {"prompt": [SYSTEM, user("Hi")], "chosen": [says("good one")], "rejected": [says("bad")]},
    "turns": {
        "prompt": [user("Hi"), says("Yo"), user("And?")],
        "chosen": [says("good"), user("more"), says("c")],
        "rejected": [says("good"), user("more"), says("d")],
    },
    "implicit": {
        "chosen": [SYSTEM, user("Hi"), says("good")],
        "rejected": [SYSTEM, user("Hi"), says("bad"), user("why?"), says("because")],
    },
    "tools": {"prompt": [user("Hi")], "chosen": [CALL, FOUND, says("cold")], "rejected": [says("no")], "tools": TOOLS},
    "tools as text": {"prompt": [user("Hi")], "chosen": [CALL], "rejected": [says("no")], "tools": json.dumps(TOOLS)},
    "variables": {
        "prompt": [user("Hi")],
        "chosen": [says("good")],
        "rejected": [says("<think>\nhm\n</think>\n\nbad")],
        "chat_template_kwargs": {"enable_thinking": False},
    },
    "thoughts": {"prompt": [user("Hi")], "chosen": [says("good", reasoning_content="hm")], "rejected": [says("bad")]},
    "parts": {
        "prompt": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
        "chosen": [says("good")],
        "rejected": [says("bad")],
    },
}
TEXTS = {
    "text": {"prompt": "The sky is:", "chosen": " blue", "rejected": " green and"},
    "closed already": {"prompt": "Hi", "chosen": "good</s>", "rejected": "bad"},
    "tokens that merge": {"prompt": "hi", "chosen": "ab", "rejected": "c"},
    "implicit text": {"chosen": "The sky is blue", "rejected": "The sky is green"},
    "one begins the other": {"chosen": "The sky is", "rejected": "The sky is green"},
    "transcript": {"chosen": "\n\nHuman: Hi\n\nAssistant: good", "rejected": "\n\nHuman: Hi\n\nAssistant: bad"},
    "prompt of a transcript": {"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": " good", "rejected": " bad"},
}
TAKEN_BY_ALL = ("a reply", "blanks", "replies alike", "turns")
NO_TEXT_CONTENT = ("idefics3", "llava_next", "smolvlm")
"""Their templates take parts alone, and write nothing of a text, or fail."""


def encoded(tokenizer, template, row):
    pair = parse_preference("line 1", row)
    if isinstance(pair, BadPair):
        return pair
    return PairEncoder(tokenizer, template, max_prompt_tokens=9999, max_tokens=9999).encode(pair)


def assert_as_trl(tokenizer, template, row):
    """The pair has TRL's tokens and TRL's mask; or it is refused, and the reason is given back."""
    ours = encoded(tokenizer, template, row)
    if isinstance(ours, BadPair):
        return str(ours)
    theirs = tokenised(tokenizer, json.loads(json.dumps(row)))
    batch, reference = collate([ours], pad_id=0), collated([theirs], pad_id=0)
    assert batch["input_ids"].tolist() == reference["input_ids"].tolist()
    assert batch["attention_mask"].tolist() == reference["attention_mask"].tolist()
    # TRL marks a response's first token even where nothing before it could predict it, and then leaves it out.
    assert batch["response_mask"][:, 1:].int().tolist() == reference["completion_mask"][:, 1:].tolist()
    return None


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_chats_are_trained_on_as_trl_would_or_refused(name):
    template = TEMPLATES[name]
    special = sorted(set(SPECIAL.findall(template)))
    tokenizer = make_tokenizer(template, extra=special)
    tokenizer.add_special_tokens({"additional_special_tokens": special})

    refused = {form: assert_as_trl(tokenizer, template, row) for form, row in CHATS.items()}

    if name.removesuffix("_training") not in NO_TEXT_CONTENT:
        assert not any(refused[form] for form in TAKEN_BY_ALL)
    for form in ("tools", "tools as text", "thoughts", "variables"):
        if refused[form] is None:  # then it is there to be read
            text = tokenizer.decode(encoded(tokenizer, template, CHATS[form]).chosen.ids)
            assert {"thoughts": "hm", "variables": "good"}.get(form, "look") in text


@pytest.mark.parametrize("name", BASES)
def test_a_text_is_trained_on_as_what_the_user_says(name):
    template = TEMPLATES[name]
    special = sorted(set(SPECIAL.findall(template)))
    tokenizer = make_tokenizer(template, extra=special)
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    text, chat = ({"prompt": p, "chosen": c, "rejected": r} for p, c, r in (
        ("Hi", "good one", "bad"), ([user("Hi")], [says("good one")], [says("bad")])
    ))  # fmt: skip

    one, other = encoded(tokenizer, template, text), encoded(tokenizer, template, chat)

    assert type(one) is type(other)
    if isinstance(one, EncodedPair):
        assert (one.chosen, one.rejected) == (other.chosen, other.rejected)


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("form", TEXTS)
def test_texts_are_trained_on_as_trl_would_without_a_template(merging_tokenizer, form, bos):
    tokenizer = merging_tokenizer("ia", "is")
    if bos:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])

    assert assert_as_trl(tokenizer, None, TEXTS[form]) is None


def test_a_batch_padded_with_eos_is_masked_as_trl_masks_it():
    tokenizer = make_tokenizer(None)
    rows = [
        {"prompt": "The sky is:", "chosen": "a", "rejected": "bcdefgh"},
        {"prompt": "x", "chosen": "yy", "rejected": "z"},
    ]

    ours = collate([encoded(tokenizer, None, row) for row in rows], pad_id=tokenizer.eos_token_id)
    theirs = collated([tokenised(tokenizer, row) for row in rows], pad_id=tokenizer.eos_token_id)

    assert ours["input_ids"].tolist() == theirs["input_ids"].tolist()
    assert ours["attention_mask"].tolist() == theirs["attention_mask"].tolist()
    assert ours["response_mask"].int().tolist() == theirs["completion_mask"].tolist()


HEADER = "{% if add_generation_prompt %}[assistant]{% endif %}"
PLAIN = "{% for m in messages %}[{{ m.content }}]{% endfor %}" + HEADER


@pytest.mark.parametrize(
    ("template", "changed", "named"),
    [
        ("[{{ messages[-1].content }}]" + HEADER, {}, "leaves out message 1 (user)"),
        ("{% for m in messages if m.role != 'system' %}[{{ m.content }}]{% endfor %}" + HEADER,
         {"prompt": [SYSTEM, user("Hi")]}, "leaves out message 1 (system)"),
        (PLAIN, {"chosen": [CALL]}, "`tool_calls` of message 2"),
        (PLAIN, {"chosen": [CALL | {"content": None}]}, "`tool_calls` of message 2"),
        (PLAIN, {"chosen": [says("good", thinking="hm", reasoning="hm")]}, "`reasoning` of message 2"),
        (PLAIN, {"tools": TOOLS}, "leaves out `tools`"),
        (PLAIN, {"chosen": [says("good", refusal="I will not")]},
         "leaves out `refusal` of message 2"),
        (PLAIN, CHATS["parts"], "takes no list of parts"),
        (PLAIN,
         {"chat_template_kwargs": {"enable_thinking": False}}, "has no variable 'enable_thinking'"),
        (HEADER, {"chat_template_kwargs": {"add_generation_prompt": True}}, "cannot set 'add_generation_prompt'"),
        (HEADER, {"chat_template_kwargs": {"chat_template": "x"}}, "cannot set 'chat_template'"),
        (TEMPLATE, CHATS["turns"], "shows no finished replies"),
        (TEMPLATE, {"chosen": "The sky is blue", "rejected": "The sky is", "prompt": None}, "(--raw does)"),
    ],
)  # fmt: skip
def test_what_a_template_would_leave_out_is_refused_by_name(template, changed, named):
    refused = encoded(make_tokenizer(template), template, CHATS["a reply"] | changed)

    assert isinstance(refused, BadPair)
    assert named in refused.detail


def test_a_template_that_always_opens_a_turn_gets_the_reply_where_generation_puts_it():
    tokenizer = make_tokenizer(TEMPLATE)

    pair = encoded(tokenizer, TEMPLATE, CHATS["a reply"])

    assert tokenizer.decode(pair.chosen.ids) == "[user] Hi there\n[assistant]good one</s>"
    assert (pair.chosen.response_tokens, pair.rejected.response_tokens) == (9, 4)
