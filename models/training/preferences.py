"""Preference pairs: a prompt, the response that was preferred, and the one that was not; checked row by row."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from models.errors import ModelsError
from models.training.conversations import Conversation, Malformed, reply_of, split_transcript, turns_of

Prompt = str | Conversation
"""What a response answers: text, which is wrapped as one user message, or the turns of a conversation."""


class PreferencesError(ModelsError):
    """Preference pairs cannot be read, or none of them can be used."""


class Problem(StrEnum):
    """Why a pair is left out of training."""

    MALFORMED = "malformed"
    """A field is missing, or neither text nor messages."""
    EMPTY = "empty"
    """The prompt or a response has no text."""
    IDENTICAL = "identical"
    """Both responses are the same, so that there is nothing to prefer."""
    OTHER_PROMPT = "another prompt"
    """Two conversations that differ before their last turn do not answer the same prompt."""
    REFUSED = "refused by the template"
    """The model's chat template does not take the conversation, or it has none."""
    PROMPT_TOO_LONG = "prompt too long"
    TOO_LONG = "too long"
    """Prompt and response together have more tokens than allowed."""


@dataclass(frozen=True)
class Preference:
    """One pair of responses to a prompt."""

    place: str
    """Where it stands in its source: "line 7"."""
    prompt: Prompt
    chosen: str
    rejected: str


@dataclass(frozen=True)
class BadPair:
    """A pair that is left out, and why."""

    place: str
    problem: Problem
    detail: str

    def __str__(self) -> str:
        return f"{self.place}: {self.problem}: {self.detail}"


def parse_preference(place: str, row: Mapping[str, Any]) -> Preference | BadPair:
    """Check one row; fields that it does not need are ignored.

    Its forms: `prompt` (text or messages) or `messages`, with `chosen` and `rejected` as text or as messages that end
    with the response; or without a prompt, `chosen` and `rejected` as whole conversations with all but the last turn in
    common: messages, or transcripts that alternate "\\n\\nHuman: …" and "\\n\\nAssistant: …".
    """
    try:
        prompts, (chosen, rejected) = _prompts_and_responses(row)
    except Malformed as error:
        return BadPair(place, Problem.MALFORMED, str(error))
    for name, text in (("prompt", str(prompts[0])), ("chosen", chosen), ("rejected", rejected)):
        if not text.strip():
            return BadPair(place, Problem.EMPTY, f"`{name}` is empty")
    if prompts[0] != prompts[1]:
        return BadPair(place, Problem.OTHER_PROMPT, "`chosen` and `rejected` differ before the last turn")
    if chosen.strip() == rejected.strip():
        return BadPair(place, Problem.IDENTICAL, "`chosen` and `rejected` are the same")
    return Preference(place, prompts[0], chosen, rejected)


def _prompts_and_responses(row: Mapping[str, Any]) -> tuple[list[Prompt], list[str]]:
    """The prompt of `chosen` and that of `rejected`, and the responses.

    Raises:
        Malformed: a field is missing or of another form.
    """
    given = _given_prompt(row)
    prompts: list[Prompt] = []
    responses = []
    for name in ("chosen", "rejected"):
        prompt, response = _side(name, row.get(name), given)
        prompts.append(prompt)
        responses.append(response)
    return prompts, responses


def _given_prompt(row: Mapping[str, Any]) -> Prompt | None:
    """What the row itself calls its prompt; text that is a transcript up to the assistant's turn is a conversation."""
    for name, forms in (("prompt", "text or messages"), ("messages", "a list of messages")):
        value = row.get(name)
        if isinstance(value, list):
            return Conversation(turns_of(name, value))
        if isinstance(value, str) and name == "prompt":
            split = split_transcript(value)
            return split[0] if split is not None and not split[1] else value
        if value is not None:
            raise Malformed(f"`{name}` must be {forms}, not {type(value).__name__}")
    return None


def _side(name: str, value: Any, given: Prompt | None) -> tuple[Prompt, str]:
    """The prompt and the response of one side.

    Messages that are a whole conversation have their prompt in them, which then counts, whatever `given` says.
    """
    prompt, response = given, value
    if isinstance(value, list):
        before, response = reply_of(name, value)
        prompt = before or given
    elif isinstance(value, str):
        if given is None and (split := split_transcript(value)) is not None:
            return split
    else:
        raise Malformed(f"`{name}` " + ("is missing" if value is None else _not_text(value)))
    if prompt is None:
        raise Malformed(f"`prompt` is missing, and `{name}` is no conversation that has it in it")
    return prompt, response


def _not_text(value: Any) -> str:
    return f"must be text or messages, not {type(value).__name__}"
