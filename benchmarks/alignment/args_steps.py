"""ARGS over the held-out prompts, a batch of them at a time, each batch a cached step."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from benchmarks.alignment.args_decoding import ArgsDecoder, ArgsSettings
from benchmarks.alignment.cache import Cache, Row, digest_of
from benchmarks.alignment.loading import load_base
from benchmarks.alignment.prompts import Prompt
from benchmarks.alignment.reward_model import HEAD, load_reward_model
from benchmarks.alignment.sampling import Drawing, Sampler
from benchmarks.alignment.token_tree import ATTENTION
from models.loading import Description

BATCH = 60


class ArgsSteps:
    """Decodes prompts with ARGS.

    Args:
        sampler: renders the prompts.
        base: what is guided.
        reward_model: folder of the trajectory reward model.
        cache: of the rows.
    """

    def __init__(self, sampler: Sampler, base: Description, reward_model: Path, cache: Cache) -> None:
        self.sampler = sampler
        self.base = base
        self.folder = reward_model
        self.cache = cache

    @cached_property
    def decoder(self) -> ArgsDecoder:
        """Loaded when something has to be decoded at all."""
        base, reward = load_base(self.base), load_reward_model(self.base, self.folder)
        for model in (base, reward.backbone):
            model.set_attn_implementation(ATTENTION)
        return ArgsDecoder(base.eval(), reward, self.base.vocabulary.size, self.base.eos_ids)

    def decode(
        self, method: str, weight: float, is_greedy: bool, prompts: Sequence[Prompt], drawing: Drawing
    ) -> list[Row]:
        """One row for each prompt."""
        settings = ArgsSettings(weight, is_greedy=is_greedy)
        rows = []
        for start in range(0, len(prompts), BATCH):
            part = prompts[start : start + BATCH]
            key = [digest_of(self.folder / HEAD), weight, settings.k, is_greedy]
            key += [[[prompt.index, prompt.text] for prompt in part], drawing.new_tokens, drawing.seed]
            rows += self.cache.rows(
                f"{method}-w{weight:g}-{start}", key, lambda part=part: self._rows(part, settings, drawing)
            )
        return rows

    def _rows(self, prompts: Sequence[Prompt], settings: ArgsSettings, drawing: Drawing) -> list[Row]:
        ids = self.sampler.prompt_ids(prompts)
        indices = [prompt.index for prompt in prompts]
        decoded = self.decoder.decode(ids, indices, settings, drawing.new_tokens, drawing.seed)
        return [
            {
                "id": prompt.id,
                "sample": 0,
                "text": self.base.tokenizer.decode(one.tokens, skip_special_tokens=True),
                "finish_reason": "stop" if one.tokens[-1] in self.base.eos_ids else "length",
                "token_ids": one.tokens,
                "log_ratio": round(one.log_ratio, 4),
                "prompt_tokens": len(read),
                # The base reads the prompt and each token; the reward model the prompt and k candidates for each.
                "forward_tokens": 2 * len(read) + (1 + settings.k) * len(one.tokens),
            }
            for prompt, read, one in zip(prompts, ids, decoded, strict=True)
        ]
