"""A worker whose engine answers at once, to measure everything but the engine."""

import functools
import struct
import sys
import threading
from concurrent.futures import Future
from typing import Any

from models.completion import Completion
from models.spec import GenerationSpec, PromptRow
from worker.__main__ import main

HOLD = "hold"
"""A row with this prompt never ends."""


@functools.cache
def float32(number: float) -> float:
    """The number as a model would give it: with all the digits that float32 has as a double."""
    return float(struct.unpack("f", struct.pack("f", number))[0])


class InstantEngine:
    """Gives every row as many tokens as it asks for, always the same, with the rewards of one ARM."""

    def __init__(self, settings: Any) -> None:
        self._held: list[Future[list[Completion]]] = []
        self._lock = threading.Lock()

    def start(self) -> None:
        """Nothing to start."""

    def stop(self) -> None:
        """Cancel what never ends."""
        with self._lock:
            for future in self._held:
                future.cancel()

    def load(self, spec: GenerationSpec, give_up: Any) -> GenerationSpec:
        """Nothing to load."""
        return spec

    def hold(self, guided: GenerationSpec) -> bool:
        """Nothing to keep."""
        return True

    def let_go(self, guided: GenerationSpec) -> None:
        """Nothing to let go of."""

    def submit(self, guided: GenerationSpec, row: PromptRow) -> Future[list[Completion]]:
        """Answer at once."""
        future: Future[list[Completion]] = Future()
        if row.prompt == HOLD:
            with self._lock:
                self._held.append(future)
            return future
        count = row.sampling.max_new_tokens
        numbers = [float32(-0.123456 * (index + 1)) for index in range(count)]
        future.set_result(
            [
                Completion(
                    sample=sample,
                    text="word " * count,
                    finish_reason="length",
                    tokens=list(range(count)),
                    logprobs=numbers,
                    base_logprobs=numbers,
                    token_rewards={"arm": numbers},
                    prompt_tokens=8,
                )
                for sample in range(guided.samples)
            ]
        )
        return future


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], InstantEngine))  # type: ignore[arg-type]
