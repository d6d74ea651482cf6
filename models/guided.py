"""A base with its ARMs, loaded: what a job's rows are generated with."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from models.backbone import Backbone
from models.errors import RowError
from models.loading import Description
from models.rendering import Renderer
from models.sequence import Sequence, Stream
from models.spec import GenerationSpec, PromptRow
from models.vocabulary import shared_ids


@dataclass(eq=False)
class LoadedModel:
    """A model, or an adapter on its backbone, ready to run."""

    description: Description
    backbone: Backbone
    renderer: Renderer

    @property
    def adapter(self) -> str | None:
        """The name of its adapter on the backbone."""
        adapter = self.description.adapter
        return str(adapter.folder.resolve()) if adapter is not None else None

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
        spec = self.spec
        prompts = [model.renderer.prompt_ids(row, system=spec.system, raw=spec.raw) for model in self.models]
        for model, prompt in zip(self.models, prompts, strict=True):
            _require_room(model, len(prompt), row.sampling.max_new_tokens)
        self._require_memory([len(prompt) for prompt in prompts], row.sampling.max_new_tokens)
        weights = [row.weights[arm.name] for arm in spec.arms]
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
            for sample in range(spec.samples)
        ]

    def _require_memory(self, prompt_tokens: list[int], new_tokens: int) -> None:
        needed: dict[Backbone, int] = {}
        for model, tokens in zip(self.models, prompt_tokens, strict=True):
            blocks = model.backbone.pool.blocks_for(tokens + new_tokens)
            needed[model.backbone] = needed.get(model.backbone, 0) + blocks
        for backbone, blocks in needed.items():
            if blocks > backbone.pool.count:
                raise RowError(
                    "prompt_too_long",
                    f"the row needs a KV cache of {blocks * backbone.pool.block_size} tokens for {backbone.ref!r}, and "
                    f"there is one of {backbone.pool.count * backbone.pool.block_size}; shorten the prompt, lower "
                    "max_new_tokens or raise GENARM_KV_CACHE_BYTES",
                )


def _require_room(model: LoadedModel, prompt_tokens: int, new_tokens: int) -> None:
    context = model.description.context_tokens
    if prompt_tokens + new_tokens > context:
        raise RowError(
            "prompt_too_long",
            f"{prompt_tokens} prompt tokens and max_new_tokens {new_tokens} exceed the context of "
            f"{model.renderer.name!r}, {context} tokens",
        )
