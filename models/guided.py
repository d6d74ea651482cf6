"""A base with its ARMs, loaded: what a job's rows are generated with."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from torch import Tensor

from models.backbone import Backbone
from models.errors import RowError
from models.loading import Description
from models.rendering import Renderer
from models.residents import Resident
from models.scoring import ResponseRow, ScoredSequence, ScoredStream
from models.sequence import Sequence, Stream
from models.spec import GenerationSpec, PromptRow
from models.templates import unread
from models.vocabulary import shared_ids


@dataclass(eq=False)
class LoadedModel:
    """A model, or an adapter on its backbone, ready to run."""

    description: Description
    residents: tuple[Resident, ...]
    """Its backbone, and where it is an adapter that."""
    renderer: Renderer

    @property
    def backbone(self) -> Backbone:
        """What runs it; only for those who hold it in memory."""
        backbone = self.residents[0].item
        if backbone is None:
            raise RuntimeError(f"{self.renderer.name} was dropped from memory: hold it while it is used")
        return cast(Backbone, backbone)

    @property
    def adapter(self) -> str | None:
        """The name of its adapter on the backbone."""
        return self.residents[1].item.name if len(self.residents) > 1 else None

    @cached_property
    def _holes(self) -> Tensor | None:
        holes = self.description.vocabulary.holes
        return torch.tensor(holes, device=self.backbone.device) if holes else None

    def real_logits(self, logits: Tensor) -> Tensor:
        """Logits of the real vocabulary: padding rows of the LM head cut off, holes at −inf.

        Args:
            logits: [n, rows of the LM head].

        Returns:
            float32 [n, size of the vocabulary].
        """
        real = logits[:, : self.description.vocabulary.size].float()
        if self._holes is not None:
            real = real.index_fill(1, self._holes, -torch.inf)
        return real


@dataclass(eq=False)
class GuidedModel:
    """The models of one job, and how its rows become sequences."""

    spec: GenerationSpec
    base: LoadedModel
    arms: tuple[LoadedModel, ...]

    @property
    def models(self) -> tuple[LoadedModel, ...]:
        """The base, then the ARMs."""
        return (self.base, *self.arms)

    @cached_property
    def residents(self) -> tuple[Resident, ...]:
        """What must be in memory to run it, each once, the most recently needed last."""
        return tuple({one: None for model in self.models for one in reversed(model.residents)})

    @cached_property
    def _shared(self) -> tuple[int, tuple[int, ...]]:
        return shared_ids([model.description.vocabulary for model in self.models])

    @property
    def shared_size(self) -> int:
        """All models share the ids below this, but for the excluded ones."""
        return self._shared[0]

    @property
    def excluded_ids(self) -> tuple[int, ...]:
        """Ids below `shared_size` that some model lacks."""
        return self._shared[1]

    @cached_property
    def excluded(self) -> Tensor | None:
        """The same on the base's device, int64 [e]; None where there is none."""
        return torch.tensor(self.excluded_ids, device=self.base.backbone.device) if self.excluded_ids else None

    def sequences(self, row: PromptRow, request: object) -> list[Sequence]:
        """The sequences of a row, one per sample.

        Raises:
            RowError: `invalid_prompt`, or `prompt_too_long` where the prompt and the new tokens do not fit the context,
                or the KV cache, of one of the models.
        """
        prompts, new_tokens = self._prompts(row), row.sampling.max_new_tokens
        for model, prompt in zip(self.models, prompts, strict=True):
            _require_room(model, len(prompt), new_tokens, f"max_new_tokens {new_tokens}")
        _require_memory(
            ((model.backbone, len(prompt) + new_tokens) for model, prompt in zip(self.models, prompts, strict=True)),
            "shorten the prompt, lower max_new_tokens",
        )
        weights = [row.weights[arm.name] for arm in self.spec.arms]
        return [
            Sequence(
                request=request,
                sample=sample,
                row=row.index,
                sampling=row.sampling,
                weights=weights,
                streams=[
                    Stream(model.backbone, model.adapter, list(prompt), len(prompt))
                    for model, prompt in zip(self.models, prompts, strict=True)
                ],
                token_rewards=[[] for _ in self.arms],
            )
            for sample in range(self.spec.samples)
        ]

    def scored_sequence(self, row: ResponseRow, request: object) -> ScoredSequence:
        """The sequence that scores a row's response.

        Raises:
            RowError: `invalid_response`: it has no token, or one that a model lacks; else as `sequences`.
        """
        prompts, response = self._prompts(row.prompt), self._response(row)
        streams: dict[object, ScoredStream] = {}
        keys = []
        for model, prompt in zip(self.models, prompts, strict=True):
            _require_room(model, len(prompt), len(response), f"{len(response)} response tokens")
            key = (model.backbone, model.adapter, tuple(prompt))
            keys.append(key)
            streams[key] = ScoredStream(
                model.backbone, model.adapter, prompt + response[:-1], len(prompt), model=model, response=response
            )
        _require_memory(
            ((stream.backbone, len(stream.tokens)) for stream in streams.values()),
            "shorten the prompt or the response",
        )
        return ScoredSequence(request, list(streams.values()), [list(streams).index(key) for key in keys])

    @cached_property
    def _variables(self) -> frozenset[str]:
        """What the chat templates read from outside."""
        return frozenset[str]().union(*(model.renderer.variables for model in self.models))

    def _require_read(self, row: PromptRow) -> None:
        """Refuse what a row brings for the chat template, and no template reads."""
        for name in row.for_template:
            if row.messages is None and (row.raw or self.base.renderer.templates is None):
                raise RowError("invalid_prompt", f"{name!r} is for a chat template, and `prompt` is used as it stands")
            if name not in self._variables:
                raise RowError("invalid_prompt", unread(name, self._variables))

    def _prompts(self, row: PromptRow) -> list[list[int]]:
        spec = self.spec
        self._require_read(row)
        return [model.renderer.prompt_ids(row, system=spec.system, raw=row.raw) for model in self.models]

    def _response(self, row: ResponseRow) -> list[int]:
        """The tokens of a response, which all models have."""
        renderer, known = self.base.renderer, self.base.description.vocabulary.tokens
        tokens = list(row.tokens or ())
        if any(token not in known for token in tokens) or not _spells(renderer.text(tokens), row):
            tokens = renderer.response_ids(
                row.prompt, row.response, system=self.spec.system, raw=row.prompt.raw, is_closed=row.is_closed
            )
        if not tokens:
            raise RowError("invalid_response", "`response` is empty, and not closed by an end-of-sequence token")
        excluded = set(self.excluded_ids)
        for model in self.models:
            known = model.description.vocabulary.tokens
            if lacking := [token for token in tokens if token not in known or token in excluded]:
                raise RowError(
                    "invalid_response", f"token {lacking[0]} of the response is none of model {model.renderer.name!r}"
                )
        return tokens


def _spells(text: str, row: ResponseRow) -> bool:
    """Whether a text is a row's response, with or without the space before its first word."""
    return row.is_spelt(text) or row.is_spelt(text.removeprefix(" "))


def _require_memory(needs: Iterable[tuple[Backbone, int]], remedy: str) -> None:
    """Check that the KV caches could hold a row alone: so many tokens for each of its streams."""
    needed: dict[Backbone, int] = {}
    for backbone, tokens in needs:
        needed[backbone] = needed.get(backbone, 0) + backbone.pool.blocks_for(tokens)
    for backbone, blocks in needed.items():
        if blocks > backbone.pool.count:
            raise RowError(
                "prompt_too_long",
                f"the row needs a KV cache of {blocks * backbone.pool.block_size} tokens for {backbone.ref!r}, and "
                f"there is one of {backbone.pool.count * backbone.pool.block_size}; {remedy} or raise "
                "GENARM_KV_CACHE_BYTES",
            )


def _require_room(model: LoadedModel, prompt_tokens: int, new_tokens: int, what: str) -> None:
    context = model.description.context_tokens
    if prompt_tokens + new_tokens > context:
        raise RowError(
            "prompt_too_long",
            f"{prompt_tokens} prompt tokens and {what} exceed the context of {model.renderer.name!r}, {context} tokens",
        )
