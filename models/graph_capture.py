"""How a step of fixed shapes is made to run again: as a CUDA graph, elsewhere by calling it."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

WARM_UPS = 2

Step = Callable[[], Tensor]
Capture = Callable[[Step], Step]
"""Takes a step and gives its replay. The replay keeps only the memory that the step allocates while it is captured:
the caller must keep all else that the step reads."""


def capture_for(device: torch.device) -> Capture:
    """How the steps of a backbone are captured: as CUDA graphs over one memory pool, or not at all.

    After a step could not be captured, or all graphs were dropped, make a new one: its memory pool is gone.
    """
    return CudaCapture(device) if device.type == "cuda" else lambda step: step


class CudaCapture:
    """Captures steps as CUDA graphs of one device over one memory pool.

    Whatever fails, the process is as it was before: its current stream and device, and PyTorch's allocator.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        with torch.cuda.device(device):
            self._stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, step: Step) -> Step:
        """Run a step to warm it up, then capture it.

        Raises:
            Exception: what the step raised; or the capture, where the step did what a graph cannot.
        """
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device):
            self._warm_up(step)
            logits = self._record(graph, step)

        def replay() -> Tensor:
            with torch.cuda.device(self._device):
                graph.replay()
            return logits

        return replay

    def _warm_up(self, step: Step) -> None:
        """Let libraries allocate their workspaces; the keys that a step writes are the same each time."""
        self._stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_UPS):
                    step()
        finally:
            torch.cuda.current_stream().wait_stream(self._stream)

    def _record(self, graph: torch.cuda.CUDAGraph, step: Step) -> Tensor:
        logits, cause = None, None
        try:
            # The outer context restores the current stream; the inner one does not where a capture cannot be ended.
            # "thread_local": another thread may be loading a model meanwhile.
            with (
                torch.cuda.stream(self._stream),
                torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"),
            ):
                try:
                    logits = step()
                except Exception as error:
                    cause = error
                    raise
        except Exception as error:
            self._end_allocating()
            raise cause or error  # noqa: B904 - the error of ending a broken capture says nothing
        assert logits is not None
        return logits

    def _end_allocating(self) -> None:
        """What PyTorch leaves out where a capture cannot be ended: else `empty_cache` fails from now on."""
        index = torch.cuda.current_device()
        with suppress(RuntimeError):  # the capture was ended, or never begun
            torch._C._cuda_endAllocateToPool(index, self._pool)
            torch._C._cuda_releasePool(index, self._pool)
