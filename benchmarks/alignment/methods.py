"""Each method as a front: the points that it gives over its own strength, on the same prompts and pairs."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.alignment.adapters import combine
from benchmarks.alignment.best_of_n import best_of
from benchmarks.alignment.cache import Cache, Row, digest_of
from benchmarks.alignment.evaluation import Point
from benchmarks.alignment.pairs import HELD_OUT, Pair, Schedule, read_pairs
from benchmarks.alignment.plan import Plan
from benchmarks.alignment.prompts import Prompt
from benchmarks.alignment.sampling import BASE_AS_ARM, Drawing, Guide, Policy, Sampler
from models.loading import Description, describe
from models.rendering import closing_token
from models.training.encoding import EncodedPair

PROMPTS_SCORED = 20
PAIRS_REFERRED = 250
"""In one step."""


@dataclass(frozen=True)
class Inputs:
    """What is compared on: models and pairs by path."""

    base: str
    """A .gguf file or a folder."""
    arms: dict[str, Path]
    """By name: adapter folders, of `positive` and `plain` with their pairs beside them, and a model or an adapter."""

    def pairs(self, name: str, part: str) -> Path:
        """Of an ARM: `train` or `heldout`."""
        return self.arms[name] / f"{part}.pairs.jsonl"


class Methods:
    """Runs methods; whatever has been run already comes from the cache.

    Args:
        inputs: base, ARMs and pairs.
        plan: strengths and sizes.
        prompts: held out.
        cache: of all steps.
        home: converted models are kept under it.
    """

    def __init__(self, inputs: Inputs, plan: Plan, prompts: Sequence[Prompt], cache: Cache, home: Path) -> None:
        self.inputs = inputs
        self.plan = plan
        self.prompts = prompts
        self.cache = cache
        self.sampler = Sampler(inputs.base, home, cache)
        self.drawing = Drawing(plan.new_tokens, plan.seed)
        self.home = home

    @cached_property
    def description(self) -> Description:
        """Of the base."""
        return describe(self.inputs.base, self.home)

    @cached_property
    def base_samples(self) -> list[list[Row]]:
        """The base's completions of each prompt."""
        n = max(self.plan.best_of)
        rows = self.sampler.sample("base", Policy(self.inputs.base), self.prompts, replace(self.drawing, samples=n))
        return [rows[start : start + n] for start in range(0, len(rows), n)]

    def base(self) -> list[Point]:
        """The base alone: its first completion of each prompt."""
        return [Point("base", "", [rows[0] for rows in self.base_samples])]

    def genarm(self, arm: str, weights: Sequence[float], method: str) -> list[Point]:
        """Guided decoding with one ARM, over its weight."""
        return [self._guided(method, {arm: weight}) for weight in weights]

    def relative(self, method: str) -> list[Point]:
        """Guided decoding by log π_r − log π_base of `positive`: the base is a second ARM, with the opposite weight."""
        return [self._guided(method, {"positive": weight, BASE_AS_ARM: -weight}) for weight in self.plan.relative]

    def two_arms(self, method: str) -> list[Point]:
        """Guided decoding with both ARMs, over pairs of weights."""
        return [
            self._guided(method, {"positive": self.plan.total * share, "plain": self.plan.total * (1 - share)})
            for share in self.plan.shares
        ]

    def _guided(self, method: str, weights: dict[str, float]) -> Point:
        used = {arm: weight for arm, weight in weights.items() if weight}
        guides = tuple(Guide(arm, self._ref(arm), weight) for arm, weight in used.items())
        label = " ".join(f"{arm}={weight:g}" for arm, weight in used.items())
        name = "guided-" + "-".join(f"{arm}{weight:g}" for arm, weight in used.items())
        rows = self.sampler.sample(name, Policy(self.inputs.base, guides), self.prompts, self.drawing)
        return Point(method, label, rows)

    def _ref(self, arm: str) -> str:
        return self.inputs.base if arm == BASE_AS_ARM else str(self.inputs.arms[arm])

    def best_of_n(self) -> list[Point]:
        """The best of n by the reward model, over n."""
        scored = self._scored_samples()
        return [
            Point("best-of-n", f"n={n}", [best_of(rows, scores, n) for rows, scores in scored])
            for n in self.plan.best_of
            if n > 1
        ]

    def _scored_samples(self) -> list[tuple[list[Row], list[float]]]:
        """The base's completions of each prompt with their scores by the reward model."""
        folder, scored = self.reward_model(), []
        for start in range(0, len(self.prompts), PROMPTS_SCORED):
            prompts = self.prompts[start : start + PROMPTS_SCORED]
            samples = self.base_samples[start : start + PROMPTS_SCORED]
            n = len(samples[0])
            key = [digest_of(folder / "head.safetensors"), [[prompt.index, prompt.text] for prompt in prompts]]
            key += [self.drawing.new_tokens, self.drawing.seed, n]
            made = self.cache.rows(
                f"scores-{start}", key, lambda prompts=prompts, samples=samples: self._scores(folder, prompts, samples)
            )
            scores = [row["score"] for row in made]
            scored += [(rows, scores[place * n : (place + 1) * n]) for place, rows in enumerate(samples)]
        return scored

    def _scores(self, folder: Path, prompts: Sequence[Prompt], samples: Sequence[Sequence[Row]]) -> list[Row]:
        from benchmarks.alignment.reward_model import load_reward_model, scores

        closing = closing_token(self.description.tokenizer, self.description.template)
        ends = {closing, *self.description.eos_ids}
        whole = [
            [*prompt, *(token for token in row["token_ids"] if token not in ends), closing]
            for prompt, rows in zip(self.sampler.prompt_ids(prompts), samples, strict=True)
            for row in rows
        ]
        return [{"score": score} for score in scores(load_reward_model(self.description, folder), whole)]

    def args(self) -> list[Point]:
        """ARGS-greedy and ARGS-stochastic, over the weight of the reward."""
        from benchmarks.alignment.args_steps import ArgsSteps

        steps = ArgsSteps(self.sampler, self.description, self.reward_model(), self.cache)
        points = []
        for is_greedy, weights in ((True, self.plan.args_greedy), (False, self.plan.args_stochastic)):
            method = "ARGS-greedy" if is_greedy else "ARGS-stochastic"
            for weight in weights:
                rows = steps.decode(method, weight, is_greedy, self.prompts, self.drawing)
                points.append(Point(method, f"w={weight:g}", rows))
        return points

    def dpo(self) -> list[Point]:
        """DPO, over how much of its change of the weights is taken."""
        adapter = self.dpo_adapter("positive")
        return [self._policy("DPO", f"scale={scale:g}", [adapter], [scale]) for scale in self.plan.dpo_scales]

    def soup(self, method: str, adapters: Sequence[Path]) -> list[Point]:
        """Rewarded Soups: two adapters of the base interpolated in weight space, over the share of the first."""
        return [self._policy(method, f"share={share:g}", adapters, [share, 1 - share]) for share in self.plan.shares]

    def _policy(self, method: str, label: str, adapters: Sequence[Path], coefficients: Sequence[float]) -> Point:
        def make(folder: Path) -> None:
            combine(adapters, coefficients, self.description.backbone.folder, folder)

        key = [[digest_of(one / "adapter_model.safetensors") for one in adapters], list(coefficients)]
        name = f"{method}-{label}".replace("=", "")
        folder = self.cache.made(f"{name}-adapter", key, make)
        return Point(method, label, self.sampler.sample(name, Policy(str(folder)), self.prompts, self.drawing))

    def reward_model(self) -> Path:
        """The trajectory reward model that is trained on the pairs of `positive`."""
        from benchmarks.alignment.reward_model import train_reward_model

        schedule = self.plan.reward_model

        def make(folder: Path) -> None:
            train_reward_model(
                self.description, self._pairs("positive", "train"), self._pairs("positive", "heldout"), schedule, folder
            )

        return self.cache.made("reward-model", self._training_key("positive", schedule), make)

    def dpo_adapter(self, arm: str) -> Path:
        """The DPO policy of the pairs that an ARM was trained on."""
        return self._train_dpo(f"dpo-{arm}", arm, replace(self.plan.dpo, learning_rate=self.dpo_rate()))

    def dpo_rate(self) -> float:
        """The learning rate of the short trial that ends with the lowest loss on held-out pairs."""
        losses = {}
        for rate in self.plan.dpo_rates:
            schedule = replace(self.plan.dpo, learning_rate=rate, epochs=1)
            folder = self._train_dpo(f"dpo-trial-{rate:g}", "positive", schedule, share=8)
            losses[rate] = json.loads((folder / HELD_OUT).read_text())["loss"]
        return min(losses, key=losses.__getitem__)

    def _train_dpo(self, name: str, arm: str, schedule: Schedule, share: int = 1) -> Path:
        from benchmarks.alignment.dpo import train_dpo

        def make(folder: Path) -> None:
            train, held_out = (self._with_reference(arm, part) for part in ("train", "heldout"))
            train_dpo(
                self.description, self.inputs.base, train[: max(1, len(train) // share)], held_out, schedule, folder
            )

        return self.cache.made(name, [*self._training_key(arm, schedule), share], make)

    def held_out(self, arm: str) -> list[Row]:
        """What an ARM says of the held-out pairs: the summed log-probabilities of both responses."""
        folder, prefers = self.inputs.arms[arm], "positive" if arm == "small" else arm

        def rows() -> list[Row]:
            from benchmarks.alignment.dpo import pair_rows
            from benchmarks.alignment.loading import load_arm

            return pair_rows(load_arm(self.description, folder), self._encoded(prefers, "heldout"))

        key = [self.sampler.digest(str(folder)), digest_of(self.inputs.pairs(prefers, "heldout")), self.plan.pairs]
        return self.cache.rows(f"held-out-{arm}", key, rows)

    def _pairs(self, arm: str, part: str) -> list[Pair]:
        return [Pair(pair) for pair in self._encoded(arm, part)]

    def _encoded(self, arm: str, part: str) -> list[EncodedPair]:
        return read_pairs(self.inputs.pairs(arm, part), self.description)[: self.plan.pairs]

    def _with_reference(self, arm: str, part: str) -> list[Pair]:
        from benchmarks.alignment.dpo import reference_rows

        pairs, rows = self._encoded(arm, part), list[Row]()
        for start in range(0, len(pairs), PAIRS_REFERRED):
            some = pairs[start : start + PAIRS_REFERRED]
            key = [self.sampler.digest(self.inputs.base), digest_of(self.inputs.pairs(arm, part)), start, len(some)]
            rows += self.cache.rows(
                f"reference-{arm}-{part}-{start}", key, lambda some=some: reference_rows(self.description, some)
            )
        return [Pair(pair, (row["chosen"], row["rejected"])) for pair, row in zip(pairs, rows, strict=True)]

    def _training_key(self, arm: str, schedule: Schedule) -> list[Any]:
        pairs = digest_of(self.inputs.pairs(arm, "train"))
        return [self.sampler.digest(self.inputs.base), pairs, self.plan.pairs, asdict(schedule)]
