"""What a job asks for (GenerationSpec) and what a row may say (PromptRow), validated once on entry."""

import datetime
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from models.errors import RowError, SpecError
from models.messages import plain_message


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half of a surrogate pair, which is no text") from None
    return text


Text = Annotated[str, AfterValidator(_encodable)]
Role = Annotated[Text, Field(min_length=1, max_length=64)]
ArmName = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\s=,]+$")]
Ref = Annotated[Text, Field(min_length=1, max_length=4096)]
Weight = Annotated[float, Field(allow_inf_nan=False, ge=-1e4, le=1e4)]
TEXT_URL = "/v1/completions"


TEMPLATE_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""A name of a chat template; no template that says anything looks like this."""
RESERVED_KWARGS = frozenset({
    "messages", "conversation", "tools", "documents", "chat_template", "add_generation_prompt",
    "continue_final_message", "tokenize", "sanitize_control_tokens", "padding", "truncation", "max_length",
    "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs",
})  # fmt: skip
"""Arguments of transformers' `apply_chat_template`, which are no variables of a template."""


def _json(value: Any) -> Any:
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("holds half of a surrogate pair, which is no text") from None
    except ValueError:
        raise ValueError("holds a number that is not finite, or too large") from None
    return value


def _variables(kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Those that are set, each by the name of a template's variable."""
    for name in kwargs:
        if not name.isidentifier():
            raise ValueError(f"{name[:80]!r} is no name of a template's variable")
        if name in RESERVED_KWARGS:
            columns = "; give it as a column of the row" if name in {"tools", "documents"} else ""
            raise ValueError(f"{name!r} is no variable of a template, but rendered by genarm itself{columns}")
    return {name: _json(value) for name, value in kwargs.items() if value is not None}


TemplateKwargs = Annotated[Mapping[Text, JsonValue], Field(max_length=64), AfterValidator(_variables)]
Objects = Annotated[tuple[Mapping[str, JsonValue], ...], AfterValidator(_json)]


class Frozen(BaseModel):
    """A validated, immutable record; unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def is_template_name(template: str) -> bool:
    """Whether it names one of a model's chat templates, and is none itself."""
    return TEMPLATE_NAME.fullmatch(template) is not None


class SamplingParams(Frozen):
    """How tokens are drawn from the combined distribution.

    Applied in this order: temperature, top-k, top-p, min-p; each on the distribution that the one before left,
    renormalised. Temperature 0 is greedy. `top_k=0`, `top_p=1` and `min_p=0` are off.
    """

    max_new_tokens: int = Field(128, ge=1, le=1_000_000)
    temperature: float = Field(1.0, ge=0.0, le=100.0, allow_inf_nan=False)
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    top_k: int = Field(0, ge=0, lt=2**31)
    min_p: float = Field(0.0, ge=0.0, lt=1.0)
    stop: tuple[Annotated[Text, Field(min_length=1, max_length=1000)], ...] = Field((), max_length=16)
    seed: int = Field(0, ge=0, lt=2**63)
    ignore_eos: bool = False


class ArmSpec(Frozen):
    """One autoregressive reward model of a job: its name in results, where it is, and its default weight w = α/β."""

    name: ArmName
    ref: Ref
    weight: Weight = 1.0
    template: Text | None = None
    """A Jinja chat template that replaces the ARM's own, or the name of one of its own."""
    on_base: bool = False
    """The ARM is a LoRA adapter of the job's base, whatever its files say that it was trained on."""


class GenerationSpec(Frozen):
    """A job: base, ARMs, sampling. Serialises to JSON with `model_dump(mode="json")`."""

    base: Ref
    arms: tuple[ArmSpec, ...] = Field((), max_length=64)
    sampling: SamplingParams = SamplingParams()
    samples: int = Field(1, ge=1, le=1024)
    system: Text | None = None
    """A system message added where a `prompt` is wrapped as a user message."""
    raw: bool = False
    """Use `prompt` as it stands, even for models with a chat template."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    chat_template: Text | None = None
    """A Jinja chat template that replaces the base's own, or the name of one of its own."""
    chat_template_kwargs: TemplateKwargs = {}
    """Variables for the chat templates, as transformers' `apply_chat_template` takes them."""
    date: datetime.date | None = None
    """What the templates' `strftime_now` gives, at midnight; a submitted job has one where a template asks for it."""

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [arm.name for arm in self.arms]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two ARMs are named {name!r}; give one of them another name: NAME=REF")
        return self

    @classmethod
    def parse(cls, fields: Mapping[str, Any]) -> Self:
        """Validate a job's spec.

        Raises:
            SpecError: a field is missing, unknown, or of the wrong type or range; the message names it.
        """
        try:
            return cls.model_validate(dict(fields))
        except ValidationError as error:
            raise SpecError(explain(error)) from None


class Message(Frozen):
    """One chat message; fields that say nothing are left out of it."""

    role: Role
    content: Text
    name: Text | None = None
    reasoning_content: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_plain(cls, message: Any) -> Any:
        return plain_message(message)

    def for_template(self) -> dict[str, str]:
        """The message as chat templates take it."""
        return self.model_dump(exclude_none=True)


class PromptRow(Frozen):
    """One row of a dataset as the engine takes it: a prompt or messages, with this row's own weights and sampling."""

    index: int = Field(ge=0)
    """Position of the row in its dataset; randomness is drawn from (seed, index, sample, position)."""
    prompt: Text | None = None
    messages: tuple[Message, ...] | None = None
    weights: Mapping[str, float]
    """A weight for every ARM of the spec."""
    sampling: SamplingParams
    raw: bool = False
    """Use `prompt` as it stands."""
    tools: Objects | None = None
    """Tools for the chat template, as JSON schemas."""
    documents: Objects | None = None
    """Documents for the chat template."""
    chat_template_kwargs: TemplateKwargs = {}
    """This row's variables for the chat template; they go before the job's."""
    job_kwargs: Mapping[str, Any] = {}
    date: datetime.date | None = None
    """The job's."""

    @property
    def for_template(self) -> tuple[str, ...]:
        """What the row brings that only a chat template can use."""
        given = [name for name in ("tools", "documents") if getattr(self, name) is not None]
        return (*given, *self.chat_template_kwargs)

    @classmethod
    def parse(cls, row: Mapping[str, Any], index: int, spec: GenerationSpec) -> Self:
        """Validate a row against its job's spec.

        Columns other than prompt, messages, weights, sampling, tools, documents and chat_template_kwargs are ignored.

        Raises:
            RowError: `invalid_prompt`, `invalid_weights` or `invalid_sampling`.
        """
        fields = {
            "index": index,
            **_prompt_or_messages(row),
            "weights": _merged_weights(row.get("weights"), spec),
            "sampling": _merged_sampling(row.get("sampling"), spec.sampling),
            "raw": spec.raw or _is_text_request(row),
            "tools": row.get("tools") or None,
            "documents": row.get("documents") or None,
            "chat_template_kwargs": row.get("chat_template_kwargs") or {},
            "job_kwargs": spec.chat_template_kwargs,
            "date": spec.date,
        }
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise RowError("invalid_prompt", explain(error)) from None


def _is_text_request(row: Mapping[str, Any]) -> bool:
    """Whether the row is a request of OpenAI's for a text to go on, which has no chat template."""
    return row.get("url") == TEXT_URL and isinstance(row.get("body"), Mapping)


def _prompt_or_messages(row: Mapping[str, Any]) -> dict[str, Any]:
    prompt, messages = row.get("prompt"), row.get("messages")
    if messages is not None:
        if not isinstance(messages, list | tuple) or not messages:
            raise RowError("invalid_prompt", "`messages` must be a list of {role, content} objects, at least one")
        return {"messages": messages}
    if prompt is None:
        raise RowError("invalid_prompt", "the row has neither `prompt` nor `messages`")
    if not isinstance(prompt, str):
        hint = "; a row has one prompt, and token ids must be decoded before" if isinstance(prompt, list) else ""
        raise RowError("invalid_prompt", f"`prompt` must be text, not {type(prompt).__name__}{hint}")
    if not prompt.strip():
        raise RowError("invalid_prompt", "`prompt` is empty")
    return {"prompt": prompt}


def _merged_weights(overrides: Any, spec: GenerationSpec) -> dict[str, float]:
    weights = {arm.name: arm.weight for arm in spec.arms}
    if overrides is None:
        return weights
    if not isinstance(overrides, Mapping):
        raise RowError("invalid_weights", "`weights` must be an object of ARM name to number")
    for name, weight in overrides.items():
        if name not in weights:
            known = ", ".join(weights) or "none"
            raise RowError(
                "invalid_weights", f"`weights` names {name!r}, which is no ARM of this job (it has: {known})"
            )
        is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not is_number or not abs(weight) <= 1e4:  # NaN is within nothing
            raise RowError("invalid_weights", f"the weight of {name!r} must be a finite number within ±10000")
        weights[name] = float(weight)
    return weights


def _merged_sampling(overrides: Any, defaults: SamplingParams) -> SamplingParams:
    if overrides is None:
        return defaults
    if not isinstance(overrides, Mapping):
        raise RowError("invalid_sampling", "`sampling` must be an object")
    set_fields = {name: value for name, value in overrides.items() if value is not None}
    try:
        return SamplingParams.model_validate({**defaults.model_dump(), **set_fields})
    except ValidationError as error:
        raise RowError("invalid_sampling", explain(error)) from None


def explain(error: ValidationError) -> str:
    """One line that names each wrong field and what is wrong with it, without the values (they may be long)."""
    parts = []
    for problem in error.errors(include_url=False, include_input=False):
        place = " ".join(".".join(str(step) for step in problem["loc"]).split())
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = "is not supported; leave it out"
        parts.append(f"{place}: {message}" if place else message)
    return "; ".join(parts)
