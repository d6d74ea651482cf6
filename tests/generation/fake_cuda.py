"""CUDA's streams, graphs and allocator as far as captures use them, without a GPU: it keeps PyTorch's rules.

`torch.cuda.graph` itself is PyTorch's own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch


class Stream:
    def __init__(self, cuda: "FakeCuda", name: str) -> None:
        self.device, self.name = torch.device("cuda", cuda.device), name
        self.waited_for: list[Stream] = []

    def wait_stream(self, other: "Stream") -> None:
        self.waited_for.append(other)


class Graph:
    """A graph whose capture breaks where the step raised, as one does that waited for the device."""

    def __init__(self, cuda: "FakeCuda") -> None:
        self._cuda = cuda

    def capture_begin(self, pool: Any, capture_error_mode: str, check_input_liveness: bool = False) -> None:
        cuda = self._cuda
        assert cuda.stream is not cuda.defaults[cuda.device], "graphs are captured on another stream than the default"
        assert cuda.stream.device.index == cuda.device, "a graph is captured on a stream of the current device"
        assert (cuda.device, pool) not in cuda.allocating, "already recording to mempool_id"
        self.place = (cuda.device, pool)
        cuda.allocating.append(self.place)
        cuda.pools[pool] = cuda.pools.get(pool, 0) + 1
        cuda.captures.append((cuda.device, cuda.stream))

    def capture_end(self) -> None:
        if self._cuda.is_broken:
            self._cuda.is_broken = False
            raise torch.AcceleratorError("CUDA error: operation failed due to a previous error during capture")
        self._cuda.allocating.remove(self.place)

    def replay(self) -> None:
        self._cuda.replays.append(self._cuda.device)


class Using:
    """Makes a stream the current one of its device; as PyTorch's, it restores nothing where it is not left."""

    def __init__(self, cuda: "FakeCuda", stream: Stream) -> None:
        self._cuda, self._stream = cuda, stream

    def __enter__(self) -> None:
        self._before = self._cuda.current[self._stream.device.index]
        self._cuda.current[self._stream.device.index] = self._stream

    def __exit__(self, *error: object) -> None:
        self._cuda.current[self._stream.device.index] = self._before


class FakeCuda:
    """Two devices; everything that tells them apart is recorded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.device = 0
        self.defaults = [Stream(self, "default 0"), Stream(self, "default 1")]
        self.defaults[1].device = torch.device("cuda", 1)
        self.current = list(self.defaults)
        """The current stream of each device."""
        self.allocating: list[tuple[int, Any]] = []
        """Devices and pools to which captures allocate."""
        self.pools: dict[Any, int] = {}
        """How many graphs use each pool."""
        self.is_broken = False
        """Whether the capture that is under way can be ended."""
        self.captures: list[tuple[int, Stream]] = []
        self.replays: list[int] = []
        fakes = {
            "device": self.on, "stream": lambda stream: Using(self, stream), "current_device": lambda: self.device,
            "current_stream": lambda device=None: self.stream, "Stream": lambda: Stream(self, "side"),
            "CUDAGraph": lambda: Graph(self), "graph_pool_handle": object, "synchronize": lambda device=None: None,
            "empty_cache": self.empty_cache,
        }  # fmt: skip
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        inner = {
            "_host_emptyCache": lambda: None, "_cuda_endAllocateToPool": self._end, "_cuda_releasePool": self._release,
        }  # fmt: skip
        for name, fake in inner.items():
            monkeypatch.setattr(torch._C, name, fake, raising=False)
        monkeypatch.setattr(torch.cuda.graph, "default_capture_stream", None)

    @property
    def stream(self) -> Stream:
        return self.current[self.device]

    @contextmanager
    def on(self, device: torch.device) -> Iterator[None]:
        before, self.device = self.device, device.index if device.index is not None else self.device
        try:
            yield
        finally:
            self.device = before

    def empty_cache(self) -> None:
        if self.allocating:
            raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")

    def _end(self, device: int, pool: Any) -> None:
        if (device, pool) not in self.allocating:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.allocating.remove((device, pool))

    def _release(self, device: int, pool: Any) -> None:
        self.pools[pool] -= 1
