"""Chat templates: which of a model's is used, which variables it reads, and the text that it makes of messages.

Rendered as transformers' `apply_chat_template` does, in its own sandbox, with two differences: `strftime_now` gives the
date of the job, so that its prompts are the same on every day and worker; and steps, text and time are bounded.
"""

import threading
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from functools import lru_cache
from typing import Any

from jinja2 import meta

from models import template_limits
from models.errors import UnsupportedModelError
from models.spec import is_template_name

DEFAULT, TOOL_USE = "default", "tool_use"
LONGEST_FORMAT = 1000
ALWAYS = {"messages", "add_generation_prompt", "tools", "documents"}
"""Variables that every template is given."""


@dataclass(frozen=True)
class ChatTemplates:
    """The Jinja templates that a model's prompts are rendered with."""

    text: str
    tool_use: str
    """For rows that bring tools."""


def choose(own: str | Mapping[str, str] | None, wanted: str | None, ref: str) -> ChatTemplates | None:
    """Which templates to use, as transformers chooses: `tool_use` for rows with tools, else the one called `default`.

    Args:
        own: the model's: one, several by name, or none.
        wanted: a template to use instead, or the name of one of its own.
        ref: the model's reference, for messages.

    Raises:
        UnsupportedModelError: it has none of this name, or several and none of them is the default.
    """
    named = dict(own) if isinstance(own, Mapping) else {}
    listed = ", ".join(sorted(named))
    if wanted is not None and is_template_name(wanted):
        if wanted not in named:
            has = f"it has: {listed}" if named else "it has none with a name"
            raise UnsupportedModelError(f"{ref}: has no chat template named {wanted!r}; {has}")
        return ChatTemplates(named[wanted], named[wanted])
    if wanted is not None:
        return ChatTemplates(wanted, wanted)
    if not named:
        return ChatTemplates(own, own) if isinstance(own, str) else None
    if DEFAULT not in named:
        raise UnsupportedModelError(
            f"{ref}: has several chat templates ({listed}), and none of them is the default: name one of them "
            "(--chat-template NAME for a base, --arm-template ARM=NAME for an ARM)"
        )
    return ChatTemplates(named[DEFAULT], named.get(TOOL_USE, named[DEFAULT]))


class _Moment(threading.local):
    """The date of the rendering that runs in this thread."""

    day: date | None = None


_moment = _Moment()


def _strftime_now(template: str) -> str:
    if len(template) > LONGEST_FORMAT:
        raise template_limits.TemplateLimitError("writes the date in too long a format")
    day = _moment.day or today()
    return datetime.combine(day, time()).strftime(template)


def today() -> date:
    """The date where no time zone goes first: UTC's."""
    return datetime.now(UTC).date()


@lru_cache(256)
def _compiled(text: str) -> tuple[Any, frozenset[str]]:
    """A template, and the variables that it reads from outside."""
    sandbox = template_limits.sandbox()
    sandbox.globals["strftime_now"] = _strftime_now
    tree = sandbox.parse(text)
    variables = frozenset(meta.find_undeclared_variables(sandbox.parse(text)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python's, about what jinja2 makes of the template
        return template_limits.compile_bounded(sandbox, tree), variables


def variables(text: str) -> frozenset[str]:
    """The variables that a template reads from outside; none of one that cannot be read."""
    try:
        return _compiled(text)[1]
    except Exception:  # a row that is rendered with it says what is wrong
        return frozenset()


def unread(name: str, read: Iterable[str]) -> str:
    """That no template reads a variable, in words."""
    own = ", ".join(sorted(set(read) - ALWAYS)) or "none"
    return f"no chat template of this job reads {name!r}; variables that they read: {own}"


def writes_date(templates: ChatTemplates) -> bool:
    """Whether they may write today's date."""
    return "strftime_now" in templates.text or "strftime_now" in templates.tool_use


def render(
    text: str,
    messages: Sequence[Mapping[str, Any]],
    tokenizer: Any,
    *,
    day: date | None = None,
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> str:
    """The text that a template makes of messages, as transformers' `apply_chat_template` renders it.

    Args:
        tokenizer: whose special tokens the template may write.
        day: what `strftime_now` gives, at midnight; None: today, in UTC.
        tools, documents: for the template's variables of these names.
        kwargs: more variables.

    Raises:
        Exception: a template is a program, and may raise anything.
    """
    from transformers.utils.chat_template_utils import _alias_reasoning_fields

    chat = [{name: value for name, value in message.items() if value is not None} for message in messages]
    template, _ = _compiled(text)
    _moment.day = day
    template_limits.begin()
    try:
        rendered = template.render(
            messages=_alias_reasoning_fields(chat),
            tools=tools,
            documents=documents,
            add_generation_prompt=add_generation_prompt,
            **{**tokenizer.special_tokens_map, **(kwargs or {})},
        )
    finally:
        _moment.day = None
    try:
        rendered.encode()
    except UnicodeEncodeError:
        raise ValueError("it writes half of a surrogate pair, which is no text") from None
    return str(rendered)
