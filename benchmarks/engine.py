"""How fast the engine decodes, beside its peers; one JSON object per workload, or a table.

    python benchmarks/engine.py --base MODEL [--vllm PYTHON] [--only NAME ...] [--json]

MODEL is a folder or a .gguf file; the ARM is a second full copy of the same weights unless the workload says otherwise.
Workloads and their peers run in turn, `--repeats` times, and medians are compared, since machines are shared and noisy.
"""

import argparse
import json
import math
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from lora import four_adapters, resident_bytes
from ours import OurEngine, Request
from prompts import prompts
from transformers_peer import TransformersPeer
from vllm_peer import VllmPeer

from models.references import resolve

VLLM_BARS = {16: 0.8, 64: 1.0, 128: 0.9}


@dataclass(frozen=True)
class Measured:
    """One workload: a figure of ours, one of the peer's, their ratio, and the bar that the ratio should reach."""

    workload: str
    ours: float
    peer: float | None
    ratio: float | None
    bar: float | None
    at_most: bool = False
    """The bar is an upper limit."""

    def as_dict(self) -> dict[str, object]:
        """As it is printed; `met` is null where there is no bar or no peer."""
        met = None
        if self.bar is not None and self.ratio is not None:
            met = self.ratio <= self.bar if self.at_most else self.ratio >= self.bar
        shown = {name: _short(getattr(self, name)) for name in ("ours", "peer", "ratio")}
        return {"workload": self.workload, **shown, "bar": self.bar, "met": met}


def _short(number: float | None) -> float | None:
    return None if number is None else float(f"{number:.4g}")


def in_turn(repeats: int, *runs: Callable[[int], float]) -> list[float]:
    """Medians of several measurements that take turns; each is given the number of its turn, and has one to warm up."""
    found: list[list[float]] = [[] for _ in runs]
    for turn in range(repeats + 1):
        for taken, run in zip(found, runs, strict=True):
            taken.append(run(turn))
    return [statistics.median(taken[1:]) for taken in found]


class Bench:
    """The models of a run of this script, loaded when a workload first needs them, and the workloads."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options = options
        self.folder = folder
        self.base = str(resolve(options.base, options.home).folder)
        self.tokenizer = OurEngine(folder, self.base, max_running=1).tokenizer

    @cached_property
    def copy(self) -> str:
        """The same weights at another place, which are loaded as another model."""
        return str(shutil.copytree(self.base, self.folder / "copy"))

    @cached_property
    def unguided(self) -> OurEngine:
        """The base alone."""
        return OurEngine(self.folder, self.base, max_running=128)

    @cached_property
    def guided(self) -> OurEngine:
        """The base and a full-size ARM."""
        return OurEngine(self.folder, self.base, [self.copy], max_running=128)

    @cached_property
    def transformers(self) -> TransformersPeer:
        """Peer (a): generate with an ARM in a LogitsProcessor."""
        return TransformersPeer(self.base, self.copy, self.options.device)

    @cached_property
    def vllm(self) -> VllmPeer:
        """Peer (c)."""
        return VllmPeer(self.options.vllm, self.base, 128)

    def requests(self, count: int, seed: int, prompt_tokens: int = 32, new_tokens: int = 64) -> list[Request]:
        """Requests of one size, with prompts that differ from their first token on."""
        return [Request(text, new_tokens) for text in prompts(self.tokenizer, count, prompt_tokens, seed)]

    def equal(self, batch: int) -> Iterator[Measured]:
        """Model tokens per second of guided decoding against vLLM's tokens per second without guidance."""
        tokens = batch * 64

        def ours(turn: int) -> float:
            return 2 * tokens / self.guided.seconds(self.requests(batch, turn))

        def theirs(turn: int) -> float:
            return tokens / self.vllm.seconds([one.prompt for one in self.requests(batch, turn)], 64)

        name, bar = f"equal-{batch}: model tok/s, guided, against vLLM unguided", VLLM_BARS[batch]
        if self.options.vllm is None:
            yield Measured(name, in_turn(self.options.repeats, ours)[0], None, None, bar)
            return
        mine, peer = in_turn(self.options.repeats, ours, theirs)
        yield Measured(name, mine, peer, mine / peer, bar)

    def generate(self) -> Iterator[Measured]:
        """Guided tok/s against transformers' generate, equal lengths."""
        tokens = 32 * 64

        def ours(turn: int) -> float:
            return tokens / self.guided.seconds(self.requests(32, turn))

        def theirs(turn: int) -> float:
            return tokens / self.transformers.seconds(self.requests(32, turn), 32)

        mine, peer = in_turn(self.options.repeats, ours, theirs)
        yield Measured("generate-32: guided tok/s against transformers", mine, peer, mine / peer, 2.5)

    def uneven(self) -> Iterator[Measured]:
        """A queue of requests of very different lengths; once each, since it takes minutes."""
        draw = random.Random(0)
        requests = [
            Request(one.prompt, round(math.exp(draw.uniform(math.log(8), math.log(256)))))
            for one in self.requests(256, seed=99)
        ]
        tokens = sum(one.new_tokens for one in requests)
        engine = OurEngine(self.folder, self.base, [self.copy], max_running=32)
        engine.seconds(self.requests(32, 1, new_tokens=4))
        ours, theirs = tokens / engine.seconds(requests), tokens / self.transformers.seconds(requests, 32)
        yield Measured("uneven-256: guided tok/s against transformers", ours, theirs, ours / theirs, 4.0)

    def long_prompt(self) -> Iterator[Measured]:
        """The slowest gap between two tokens of 31 decodes while a prompt of 4,000 tokens arrives."""
        engine = OurEngine(self.folder, self.base, [self.copy], max_running=32)
        slowest, usual = [], []
        for turn in range(self.options.repeats):
            running = self.requests(31, turn, new_tokens=160)
            gaps = engine.gaps_beside(running, self.requests(1, 100 + turn, prompt_tokens=4000, new_tokens=4)[0], 30)
            slowest.append(max(gaps))
            usual.append(statistics.median(gaps[-20:]))
        worst, median = statistics.median(slowest), statistics.median(usual)
        yield Measured(
            "long-prompt: slowest gap (s) against the median gap", worst, median, worst / median, 5.0, at_most=True
        )

    def samples(self) -> Iterator[Measured]:
        """Eight samples of one prompt of 512 tokens against eight prompts, 16 new tokens each: requests per second."""
        one = OurEngine(self.folder, self.base, [self.copy], max_running=8, samples=8)
        eight = OurEngine(self.folder, self.base, [self.copy], max_running=8)

        def shared(turn: int) -> float:
            return 8 / one.seconds(self.requests(1, turn, prompt_tokens=512, new_tokens=16))

        def separate(turn: int) -> float:
            return 8 / eight.seconds(self.requests(8, 50 + turn, prompt_tokens=512, new_tokens=16))

        ours, peer = in_turn(self.options.repeats, shared, separate)
        yield Measured("samples-8: completions/s against separate prompts", ours, peer, ours / peer, 4.0)

    def lora(self) -> Iterator[Measured]:
        """Four LoRA ARMs on the base's backbone against the same four as separate models, at batch 8."""
        adapters, merged = four_adapters(self.base, self.folder)
        riding = OurEngine(self.folder, self.base, adapters, max_running=8)
        separate = OurEngine(self.folder, self.base, merged, max_running=8)

        def speed(engine: OurEngine) -> Callable[[int], float]:
            return lambda turn: 8 * 64 / engine.seconds(self.requests(8, turn))

        ours, peer = in_turn(self.options.repeats, speed(riding), speed(separate))
        yield Measured("lora-4: guided tok/s against four separate models", ours, peer, ours / peer, 1.6)
        alone, together = resident_bytes(self.base, []), resident_bytes(self.base, adapters)
        yield Measured(
            "lora-4: resident bytes of the models against the base alone", together, alone, together / alone, 1.15,
            at_most=True,
        )  # fmt: skip

    def efficiency(self) -> Iterator[Measured]:
        """Guided tok/s × (1 / base tok/s + 1 / ARM tok/s), each alone on the same engine."""
        arm = OurEngine(self.folder, self.copy, max_running=128)
        for batch in (32, 64):

            def speed(engine: OurEngine, batch: int = batch) -> Callable[[int], float]:
                return lambda turn: batch * 64 / engine.seconds(self.requests(batch, turn))

            guided, base, other = in_turn(self.options.repeats, speed(self.guided), speed(self.unguided), speed(arm))
            sequential = 1 / (1 / base + 1 / other)
            yield Measured(
                f"efficiency-{batch}: guided tok/s against both models one after the other",
                guided, sequential, guided / sequential, 0.95,
            )  # fmt: skip

    def overhead(self) -> Iterator[Measured]:
        """Share of a decode step of 64 rows that scheduling, packing, sampling and bookkeeping take."""
        shares = [self.guided.share_outside_models(self.requests(64, turn)) for turn in range(self.options.repeats + 1)]
        share = statistics.median(shares[1:])
        yield Measured("overhead-64: share of a guided step outside the models", share, 1.0, share, 0.15, at_most=True)

    def roofline(self) -> Iterator[Measured]:
        """Model tok/s of the base alone against what the machine's own matrix products would allow."""
        model = self.unguided.guided.base.backbone
        weights = sum(p.numel() for p in TransformersPeer(self.base, None, self.options.device).base.parameters())
        a, b = (torch.randn(2048, 2048, dtype=model.dtype, device=model.device) for _ in range(2))

        def products(_: int) -> float:
            started = time.perf_counter()
            for _ in range(10):
                torch.nn.functional.linear(a, b)
            if model.device.type == "cuda":
                torch.cuda.synchronize()
            return 10 * 2048**3 / (time.perf_counter() - started) / weights

        def ours(turn: int) -> float:
            return 128 * 64 / self.unguided.seconds(self.requests(128, turn))

        mine, limit = in_turn(self.options.repeats, ours, products)
        yield Measured("roofline-128: model tok/s against matrix products alone", mine, limit, mine / limit, None)

    def workloads(self) -> dict[str, Callable[[], Iterator[Measured]]]:
        """By the names that --only takes."""
        equal = {f"equal-{batch}": lambda batch=batch: self.equal(batch) for batch in VLLM_BARS}
        others = {
            "generate": self.generate, "uneven": self.uneven, "long-prompt": self.long_prompt,
            "samples": self.samples, "lora": self.lora, "efficiency": self.efficiency,
            "overhead": self.overhead, "roofline": self.roofline,
        }  # fmt: skip
        return {**equal, **others}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="a model's folder or .gguf file")
    parser.add_argument("--vllm", help="Python of an environment with vLLM")
    parser.add_argument("--home", type=Path, default=Path(".genarm"), help="where a .gguf file is converted to")
    parser.add_argument("--device", default="auto", help="of transformers' models; ours take CUDA where it is")
    parser.add_argument("--only", nargs="+", default=[], help="some of the workloads")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="one JSON object per workload")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, Path(folder))
        workloads = bench.workloads()
        for name in options.only or workloads:
            for measured in workloads[name]():
                _show(measured, options.json)
        if "vllm" in bench.__dict__:
            bench.vllm.close()


def _show(measured: Measured, as_json: bool) -> None:
    facts = measured.as_dict()
    if as_json:
        print(json.dumps(facts, ensure_ascii=False), flush=True)
        return
    sign = "≤" if measured.at_most else "≥"
    bar = "" if measured.bar is None else f"{sign} {measured.bar}"
    met = {True: "met", False: "MISSED", None: ""}[facts["met"]]  # type: ignore[index]
    print(f"| {facts['workload']} | {facts['ours']} | {facts['peer']} | {facts['ratio']} | {bar} | {met} |", flush=True)


if __name__ == "__main__":
    main()
