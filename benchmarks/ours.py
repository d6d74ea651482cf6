"""Our engine as the benchmarks drive it: rows in, seconds and gaps out."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.clock import PACKING_PARTS, Clock
from models.backbone import Backbone
from models.engine import Engine, EngineSettings
from models.spec import GenerationSpec, PromptRow

KV_CACHE_BYTES = 2 * 2**30
"""Of each model: enough for every workload, so that several engines fit on one GPU."""
IN_MODELS = "forward passes"


@dataclass(frozen=True)
class Request:
    """A prompt and how many tokens to write after it."""

    prompt: str
    new_tokens: int


class OurEngine:
    """An engine stepped in this thread. `arms` are model references, each at weight 1 / their number."""

    def __init__(
        self,
        home: Path,
        base: str,
        arms: Sequence[str] = (),
        max_running: int = 64,
        samples: int = 1,
        device: str = "auto",
        dtype: str = "auto",
        kv_cache_bytes: int = KV_CACHE_BYTES,
    ) -> None:
        self.spec = GenerationSpec.parse(
            {
                "base": base,
                "arms": [{"name": f"arm{i}", "ref": ref, "weight": 1 / len(arms)} for i, ref in enumerate(arms)],
                "sampling": {"ignore_eos": True, "temperature": 1.0},
                "samples": samples,
                "raw": True,
            }
        )
        self.engine = Engine(
            EngineSettings(
                home=home, device=device, dtype=dtype, max_running=max_running, kv_cache_bytes=kv_cache_bytes
            )
        )
        self.guided = self.engine.load(self.spec)
        self.tokenizer: Any = self.guided.base.renderer.tokenizer

    def submit(self, requests: Sequence[Request]) -> list[Any]:
        """Queue requests; their futures."""
        rows = [{"prompt": one.prompt, "sampling": {"max_new_tokens": one.new_tokens}} for one in requests]
        parsed = [PromptRow.parse(row, index, self.spec) for index, row in enumerate(rows)]
        return [self.engine.submit(self.guided, row) for row in parsed]

    def seconds(self, requests: Sequence[Request]) -> float:
        """Time to generate all requests, from their text on."""
        started = time.perf_counter()
        futures = self.submit(requests)
        while self.engine.step():
            pass
        taken = time.perf_counter() - started
        for future in futures:
            future.result(timeout=0)
        return taken

    def gaps_beside(self, running: Sequence[Request], late: Request, after: int) -> list[float]:
        """Seconds of each step after the late request has arrived, while all the running ones still decode.

        Every running sequence gets a token in each step, so a step is the gap between two tokens of any of them.
        """
        self.submit(running)
        for _ in range(after):
            self.engine.step()
        (future,) = self.submit([late])
        gaps = []
        for _ in range(running[0].new_tokens - after - 2):
            started = time.perf_counter()
            self.engine.step()
            gaps.append(time.perf_counter() - started)
        while self.engine.step():
            pass
        future.result(timeout=0)
        return gaps

    def share_outside_models(self, requests: Sequence[Request]) -> float:
        """Share of a decode step that is not spent in forward passes: scheduling, packing, sampling, bookkeeping."""
        clock, shares = Clock(), []
        with clock.timing([(Backbone, "run", IN_MODELS), *PACKING_PARTS]):
            futures = self.submit(requests)
            clock.lap()
            while self.engine.step():
                lap = clock.lap()
                shares.append(1 - lap[IN_MODELS] / sum(lap.values()))
        for future in futures:
            future.result(timeout=0)
        return statistics.median(shares)
