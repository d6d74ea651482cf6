"""Everything that is drawn by genarm's engine: the base, guided decoding, and policies whose weights were changed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.alignment.cache import Cache, Row, digest_of
from benchmarks.alignment.prompts import Prompt
from models.completion import Completion
from models.engine import Engine, EngineSettings
from models.references import resolve
from models.spec import GenerationSpec, PromptRow

BASE_AS_ARM = "base"
COMPLETIONS_PER_STEP = 150


@dataclass(frozen=True)
class Guide:
    """An ARM, and its weight w = 1/β."""

    name: str
    ref: str
    weight: float


@dataclass(frozen=True)
class Policy:
    """What is sampled: a model, guided by ARMs or not."""

    model: str
    guides: tuple[Guide, ...] = ()


@dataclass(frozen=True)
class Drawing:
    """How much is drawn, and from which random numbers."""

    new_tokens: int
    seed: int
    samples: int = 1


class Sampler:
    """Samples policies with one engine, a part of the prompts at a time, each part a cached step.

    Args:
        base: reference of the base, from which KL is counted.
        home: converted models are kept under it.
        cache: of the drawn rows.
        running: sequences at once.
    """

    def __init__(self, base: str, home: Path, cache: Cache, running: int = 150) -> None:
        self.base = base
        self.home = home
        self.cache = cache
        self.running = running

    @cached_property
    def engine(self) -> Engine:
        """Loaded when something has to be drawn at all."""
        return Engine(EngineSettings(home=self.home, max_running=self.running))

    def sample(self, name: str, policy: Policy, prompts: Sequence[Prompt], drawing: Drawing) -> list[Row]:
        """`drawing.samples` rows for each prompt, by prompt and sample."""
        size = max(1, COMPLETIONS_PER_STEP // drawing.samples)
        parts = [prompts[start : start + size] for start in range(0, len(prompts), size)]
        rows = []
        for number, part in enumerate(parts, start=1):
            rows += self.cache.rows(
                f"{name}-{number}",
                self._key(policy, part, drawing),
                lambda part=part: self._draw(policy, part, drawing),
            )
        return rows

    def prompt_ids(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """The base's token ids of prompts, as the engine renders them."""
        spec = GenerationSpec.parse({"base": self.base})
        renderer = self.engine.load(spec).base.renderer
        parsed = [PromptRow.parse({"prompt": prompt.text}, prompt.index, spec) for prompt in prompts]
        return [renderer.prompt_ids(row, system=None, raw=False) for row in parsed]

    def _key(self, policy: Policy, prompts: Sequence[Prompt], drawing: Drawing) -> dict[str, Any]:
        return {
            "model": self.digest(policy.model),
            "guides": [[self.digest(guide.ref), guide.weight] for guide in policy.guides],
            "prompts": [[prompt.index, prompt.text] for prompt in prompts],
            "drawing": [drawing.new_tokens, drawing.seed, drawing.samples],
        }

    def digest(self, ref: str) -> str:
        """Of a model's weights."""
        folder = resolve(ref, self.home).folder
        return digest_of(*sorted(folder.glob("*.safetensors")))

    def _draw(self, policy: Policy, prompts: Sequence[Prompt], drawing: Drawing) -> Iterable[Row]:
        spec = self._spec(policy, drawing)
        guided = self.engine.load(spec)
        futures = [
            self.engine.submit(guided, PromptRow.parse({"prompt": prompt.text}, prompt.index, spec))
            for prompt in prompts
        ]
        while self.engine.step():
            pass
        for prompt, future in zip(prompts, futures, strict=True):
            for completion in future.result(timeout=0):
                yield row(prompt.id, completion, 1 + len(policy.guides))

    def _spec(self, policy: Policy, drawing: Drawing) -> GenerationSpec:
        guides = list(policy.guides)
        if policy.model != self.base:  # at weight 0 it changes nothing, and its log-probabilities are reported
            guides.append(Guide(BASE_AS_ARM, self.base, 0.0))
        return GenerationSpec.parse(
            {
                "base": policy.model,
                "arms": [{"name": guide.name, "ref": guide.ref, "weight": guide.weight} for guide in guides],
                "sampling": {"temperature": 1.0, "max_new_tokens": drawing.new_tokens, "seed": drawing.seed},
                "samples": drawing.samples,
            }
        )


def row(prompt_id: str, completion: Completion, models: int) -> Row:
    """What is kept of a completion.

    `log_ratio` is log π(y|x) − log π_base(y|x), whose mean estimates the KL from the base; `forward_tokens` are those
    that all models ran to write it, prompt included.
    """
    base = completion.token_rewards.get(BASE_AS_ARM, completion.base_logprobs)
    return {
        "id": prompt_id,
        "sample": completion.sample,
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "token_ids": list(completion.tokens),
        "log_ratio": round(sum(completion.logprobs) - sum(base), 4),
        "prompt_tokens": completion.prompt_tokens,
        "forward_tokens": models * (completion.prompt_tokens + len(completion.tokens)),
    }
