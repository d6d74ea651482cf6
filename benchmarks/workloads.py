"""The workloads of `engine.py`, each with its peer and the bar that the ratio of the two should reach."""

import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from shutil import copytree
from tempfile import TemporaryDirectory

import torch
from transformers import AutoModelForCausalLM

from benchmarks.lora import four_adapters, memory_bytes
from benchmarks.ours import KV_CACHE_BYTES, OurEngine, Request
from benchmarks.prompts import prompts
from benchmarks.transformers_peer import TransformersPeer
from benchmarks.vllm_peer import VllmPeer
from models.loading import describe
from models.zoo import Placement

PROMPT_TOKENS, NEW_TOKENS = 32, 64
"""Of a request, where a workload says nothing else."""
MOST_RUNNING = 128

Run = Callable[[Sequence[Request]], float]
"""Generates requests; the seconds that it took."""


@dataclass(frozen=True)
class Measured:
    """What a workload's turns gave: figures of ours, and of the peer where there is one."""

    ours: list[float]
    peer: list[float] | None

    @property
    def ratio(self) -> float | None:
        """Median of ours to median of the peer."""
        return None if self.peer is None else statistics.median(self.ours) / statistics.median(self.peer)


def in_turn(turns: int, *runs: Callable[[], float], warm_up: bool = True) -> list[list[float]]:
    """Measurements that take turns, the figures of each; there is one turn more to warm up."""
    found: list[list[float]] = [[] for _ in runs]
    for _ in range(turns + warm_up):
        for taken, run in zip(found, runs, strict=True):
            taken.append(run())
    return [taken[int(warm_up) :] for taken in found]


class Bench:
    """What the workloads share: the models' folders, where they run, prompts that never come twice, and vLLM.

    Args:
        base: a reference; the ARM is a second full copy of it, unless a workload says otherwise.
        home: where a .gguf file is converted to.
        device: auto, cpu, cuda or cuda:N; ours and transformers' models run on it.
        dtype: auto, or a precision; that of all models.
        turns: how often a workload and its peer take turns.
        vllm: Python of an environment with vLLM, if there is one.
        stack: ends what the bench starts.

    Raises:
        ModelsError: the base cannot be read, or there is no such device or dtype.
    """

    def __init__(
        self, base: str, home: Path, device: str, dtype: str, turns: int, vllm: str | None, stack: ExitStack
    ) -> None:
        self.turns = turns
        self.placement = Placement.choose(device, dtype, None)
        description = describe(base, home)
        self.config, self.tokenizer = description.config, description.tokenizer
        self.base = str(description.source.folder.resolve())
        self.folder = Path(stack.enter_context(TemporaryDirectory()))
        self._draw = random.Random(0)
        self._vllm_python = vllm
        self._stack = stack

    @property
    def device(self) -> str:
        """Where models run."""
        return str(self.placement.device)

    @property
    def dtype(self) -> str:
        """The precision of all models."""
        return str(self.placement.dtype).removeprefix("torch.")

    @cached_property
    def copy(self) -> str:
        """The same weights at another place, which are loaded as another model."""
        return str(copytree(self.base, self.folder / "copy"))

    @cached_property
    def adapters(self) -> tuple[list[str], list[str]]:
        """Four LoRA adapters of the base, and four models with them merged."""
        return four_adapters(self.base, self.folder)

    @cached_property
    def vllm(self) -> VllmPeer | None:
        """vLLM, if there is one."""
        if self._vllm_python is None:
            return None
        peer = VllmPeer(self._vllm_python, self.base, self.dtype, MOST_RUNNING, KV_CACHE_BYTES)
        return self._stack.enter_context(peer)

    def ours(self, arms: Sequence[str], most_running: int = MOST_RUNNING, samples: int = 1) -> OurEngine:
        """Our engine with the base and these ARMs; it takes its memory until nobody knows it any more."""
        return OurEngine(self.folder, self.base, arms, most_running, samples, self.device, self.dtype)

    def transformers(self, arm: str | None) -> TransformersPeer:
        """Generate of transformers in static batches of 32."""
        return TransformersPeer(self.base, arm, self.placement, batch=32)

    def requests(self, count: int, prompt_tokens: int = PROMPT_TOKENS, new_tokens: int = NEW_TOKENS) -> list[Request]:
        """Requests of one size, with prompts that differ from their first token on, also from all earlier ones."""
        return [Request(text, new_tokens) for text in prompts(self.tokenizer, count, prompt_tokens, self._draw)]

    def rate(self, run: Run, count: int, units: int = NEW_TOKENS) -> Callable[[], float]:
        """Measures units per second, where each of `count` requests counts so many; by default its new tokens."""
        return lambda: count * units / run(self.requests(count))


def equal(bench: Bench, count: int) -> Measured:
    """Guided decoding beside vLLM without guidance; each of our tokens ran through two models."""
    guided = bench.rate(bench.ours([bench.copy]).seconds, count, 2 * NEW_TOKENS)
    vllm = bench.vllm
    if vllm is None:
        (alone,) = in_turn(bench.turns, guided)
        return Measured(alone, None)
    unguided = bench.rate(lambda some: vllm.seconds([one.prompt for one in some], NEW_TOKENS), count)
    return Measured(*in_turn(bench.turns, guided, unguided))


def generate(bench: Bench, is_guided: bool) -> Measured:
    """Equal lengths beside `generate`."""
    ours, peer = bench.ours([bench.copy] if is_guided else []), bench.transformers(bench.copy if is_guided else None)
    return Measured(*in_turn(bench.turns, bench.rate(ours.seconds, 32), bench.rate(peer.seconds, 32)))


def uneven(bench: Bench) -> Measured:
    """A queue of requests of very different lengths; two turns at most, since each takes minutes."""
    draw = random.Random(0)
    lengths = [round(math.exp(draw.uniform(math.log(8), math.log(256)))) for _ in range(256)]

    def rate(run: Run) -> Callable[[], float]:
        run(bench.requests(32, new_tokens=4))  # to warm up
        return lambda: sum(lengths) / run([Request(bench.requests(1)[0].prompt, length) for length in lengths])

    ours, peer = bench.ours([bench.copy], most_running=32), bench.transformers(bench.copy)
    return Measured(*in_turn(min(2, bench.turns), rate(ours.seconds), rate(peer.seconds), warm_up=False))


def long_prompt(bench: Bench) -> Measured:
    """The slowest gap between two tokens of 31 decodes while a prompt of 4,000 tokens arrives."""
    engine, usual = bench.ours([bench.copy]), list[float]()

    def slowest() -> float:
        late = bench.requests(1, prompt_tokens=4000, new_tokens=4)[0]
        gaps = engine.gaps_beside(bench.requests(31, new_tokens=160), late, after=30)
        usual.append(statistics.median(gaps[-20:]))
        return max(gaps)

    (worst,) = in_turn(bench.turns, slowest)
    return Measured(worst, usual[1:])


def samples(bench: Bench) -> Measured:
    """Eight samples of one prompt against eight prompts."""
    one, eight = (bench.ours([bench.copy], most_running=8, samples=count) for count in (8, 1))

    def rate(engine: OurEngine, count: int) -> Callable[[], float]:
        return lambda: 8 / engine.seconds(bench.requests(count, prompt_tokens=512, new_tokens=16))

    return Measured(*in_turn(bench.turns, rate(one, 1), rate(eight, 8)))


def lora(bench: Bench) -> Measured:
    """Four LoRA ARMs on the base's backbone against the same four as models of their own."""
    riding, separate = (bench.ours(arms, most_running=8) for arms in bench.adapters)
    return Measured(*in_turn(bench.turns, bench.rate(riding.seconds, 8), bench.rate(separate.seconds, 8)))


def lora_memory(bench: Bench) -> Measured:
    """Memory of the base with four LoRA ARMs against the base alone."""
    texts, place = [one.prompt for one in bench.requests(8, prompt_tokens=4)], (bench.device, bench.dtype)
    together, alone = (float(memory_bytes(bench.base, arms, *place, texts)) for arms in (bench.adapters[0], []))
    return Measured([together], [alone])


def efficiency(bench: Bench, count: int) -> Measured:
    """Guided decoding against base and ARM, each alone on the same engine, one after the other."""
    arm = OurEngine(bench.folder, bench.copy, (), MOST_RUNNING, device=bench.device, dtype=bench.dtype)
    engines = (bench.ours([bench.copy]), bench.ours([]), arm)
    guided, *alone = in_turn(bench.turns, *(bench.rate(engine.seconds, count) for engine in engines))
    return Measured(guided, [1 / (1 / base + 1 / arm) for base, arm in zip(*alone, strict=True)])


def overhead(bench: Bench) -> Measured:
    """What scheduling, packing, sampling and bookkeeping take of a guided step."""
    engine = bench.ours([bench.copy])
    (shares,) = in_turn(bench.turns, lambda: engine.share_outside_models(bench.requests(64)))
    return Measured(shares, [1.0])


def roofline(bench: Bench, count: int, is_guided: bool) -> Measured:
    """All tokens that ran, those of prompts included, against as many matrix products alone."""
    arms = [bench.copy] if is_guided else []
    ran = PROMPT_TOKENS + NEW_TOKENS - 1  # by each model; the last new token runs no more
    inner, head = products_per_token(bench)
    products = (inner * ran + head * NEW_TOKENS) / ran
    ours = bench.rate(bench.ours(arms).seconds, count, (1 + len(arms)) * ran)
    size = 8192 if bench.placement.device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, dtype=bench.placement.dtype, device=bench.placement.device) for _ in range(2))

    def limit() -> float:
        started = time.perf_counter()
        for _ in range(10):
            torch.nn.functional.linear(a, b)
        if a.is_cuda:
            torch.cuda.synchronize()
        return 10 * size**3 / (time.perf_counter() - started) / products

    return Measured(*in_turn(bench.turns, ours, limit))


def products_per_token(bench: Bench) -> tuple[int, int]:
    """Multiplications by weights for each token, and for each whose logits are wanted; attention's own do not count."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(bench.config)
    head, embeddings = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    inner = (one.numel() for one in model.parameters() if one.dim() > 1 and one is not head and one is not embeddings)
    return sum(inner), head.numel()


@dataclass(frozen=True)
class Workload:
    """What is compared, how, and the bar of the ratio, where there is one."""

    what: str
    measure: Callable[[Bench], Measured]
    bar: float | None = None
    at_most: bool = False
    """The bar is an upper limit."""

    def is_met(self, measured: Measured) -> bool | None:
        """Whether the ratio reaches the bar; None where there is no bar, or no peer."""
        if self.bar is None or measured.ratio is None:
            return None
        return measured.ratio <= self.bar if self.at_most else measured.ratio >= self.bar


VLLM_BARS = {16: 0.8, 64: 1.0, 128: 0.9}
WORKLOADS = {
    **{
        f"equal-{count}": Workload(
            f"{count} at once: guided, model tokens/s, against vLLM without guidance", partial(equal, count=count), bar
        )
        for count, bar in VLLM_BARS.items()
    },
    "generate": Workload(
        "32 at once: guided tokens/s against transformers' generate with the ARM in a LogitsProcessor",
        partial(generate, is_guided=True),
        2.5,
    ),
    "unguided": Workload(
        "32 at once: tokens/s of the base alone against transformers' generate", partial(generate, is_guided=False)
    ),
    "uneven": Workload(
        "256 requests of 8 to 256 new tokens, 32 at once: guided tokens/s against static batches of transformers",
        uneven,
        4.0,
    ),
    "long-prompt": Workload(
        "slowest gap between two tokens of 31 decodes as a 4,000-token prompt arrives, against the median gap (s)",
        long_prompt,
        5.0,
        at_most=True,
    ),
    "samples": Workload(
        "8 samples of a 512-token prompt, 16 new tokens: completions/s against 8 prompts", samples, 4.0
    ),
    "lora-4": Workload("4 LoRA ARMs on the base, 8 at once: guided tokens/s against 4 separate models", lora, 1.6),
    "lora-4-memory": Workload(
        "4 LoRA ARMs on the base: bytes of the models against the base alone, without KV caches",
        lora_memory,
        1.15,
        at_most=True,
    ),
    **{
        f"efficiency-{count}": Workload(
            f"{count} at once: guided tokens/s against both models one after the other",
            partial(efficiency, count=count),
            0.95,
        )
        for count in (32, 64)
    },
    "overhead": Workload("share of a guided step of 64 rows outside the models", overhead, 0.15, at_most=True),
    "roofline-32": Workload(
        "32 at once: the base's tokens/s, prompts included, against matrix products alone",
        partial(roofline, count=32, is_guided=False),
    ),
    "roofline": Workload(
        "128 at once: the base's tokens/s, prompts included, against matrix products alone",
        partial(roofline, count=128, is_guided=False),
    ),
    "roofline-guided": Workload(
        "128 at once: guided, model tokens/s, prompts included, against matrix products alone",
        partial(roofline, count=128, is_guided=True),
    ),
}
"""By the names that --only takes."""
