"""Where the time of an engine's steps goes, by what it calls."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch

import models.backbone
from models.gathered_attention import GatheredCache
from models.native.attention import NativeCache
from models.static_decode import StaticStep

Part = tuple[Any, str, str]
"""The class or module of a function, the function's name, and what its time counts as."""

OUTSIDE = "the engine's loop"
PACKING = "packing the rows"
PACKING_PARTS: list[Part] = [
    (models.backbone, "pack", PACKING),
    (NativeCache, "step", PACKING),
    (GatheredCache, "step", PACKING),
    (StaticStep, "_fill", PACKING),
]


class Clock:
    """Exclusive seconds by part: the part that runs now is the innermost that was entered.

    On CUDA it waits for the device whenever the part changes, so that work counts where it was started.
    """

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._open = [OUTSIDE]
        self._since = time.perf_counter()

    def _switch(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self._seconds[self._open[-1]] += now - self._since
        self._since = now

    def _around(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            self._switch()
            self._open.append(part)
            try:
                return function(*arguments, **named)
            finally:
                self._switch()
                self._open.pop()

        return timed

    @contextmanager
    def timing(self, parts: Sequence[Part]) -> Iterator[None]:
        """Time these functions while the context lasts."""
        with ExitStack() as patched:
            for owner, name, part in parts:
                patched.enter_context(patch.object(owner, name, self._around(getattr(owner, name), part)))
            yield

    def lap(self) -> defaultdict[str, float]:
        """Seconds of each part since the last lap."""
        self._switch()
        lap, self._seconds = self._seconds, defaultdict(float)
        return lap
