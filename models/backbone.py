"""One set of weights with the adapters that ride on it: a forward pass over rows of several sequences."""

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from models.adapters import LowRank, Segments, attach, detach
from models.attention import AttentionCache, AttentionStep, ShapeProbe, bytes_per_token
from models.blocks import BLOCK_SIZE, BlockPool
from models.devices import running_on
from models.errors import UnsupportedModelError
from models.gathered_attention import GatheredCache
from models.graph_capture import capture_for
from models.native.attention import NativeCache
from models.native.kernels import Kernels
from models.native.modules import use_kernels
from models.packing import PackedStep, pack
from models.sequence import Chunk
from models.static_decode import StaticDecode


class Backbone:
    """A model's weights, its KV cache and its adapters; one thread runs it.

    Args:
        model: a causal language model loaded with our attention.
        ref: its reference, for messages.
        cache_bytes: memory for keys and values.
        kernels: the kernels to run it with; None: PyTorch's own operations.
        static: run decodes in static shapes, on CUDA as graphs; not with the kernels, which need none.

    Raises:
        UnsupportedModelError: not every layer of the model goes through our attention, or in another dtype than the
            weights', or the budget holds no block.
    """

    def __init__(
        self, model: nn.Module, ref: str, cache_bytes: int, kernels: Kernels | None, static: bool = False
    ) -> None:
        self.model: Any = model
        self.ref = ref
        self.kernels = kernels
        self.device, self.dtype = cast(torch.device, model.device), cast(torch.dtype, model.dtype)
        self._is_spread = len({weight.device for weight in model.parameters()}) > 1
        """Over devices: then who selects rows does not know where they are, and leaves the numbers on the CPU."""
        self._segments = Segments()
        probe = self._probe()
        blocks = cache_bytes // (bytes_per_token(probe.shapes, self.dtype) * BLOCK_SIZE)
        if blocks < 1:
            raise UnsupportedModelError(f"{ref}: a KV cache of {cache_bytes} bytes does not hold {BLOCK_SIZE} tokens")
        self.pool = BlockPool(blocks)
        if kernels is not None:
            use_kernels(model, kernels)
        self._cache = self._make_cache(probe)
        self._static = None
        if static and not self._is_spread and isinstance(self._cache, GatheredCache):
            self._static = StaticDecode(self._cache, self._segments, self._run_model, partial(capture_for, self.device))

    def _make_cache(self, probe: ShapeProbe) -> AttentionCache:
        if self.kernels is not None and NativeCache.fits(probe.shapes, self.kernels):
            return NativeCache(probe.shapes, self.pool.count, self.kernels)
        return GatheredCache(probe.shapes, self.pool.count, self.dtype, probe.devices)

    def attach(self, adapter: str, updates: dict[str, LowRank]) -> None:
        """Let an adapter ride on this backbone under the name `adapter`."""
        attach(self.model, self._segments, adapter, updates)

    def detach(self, adapter: str) -> None:
        """Let an adapter, which no row uses, ride no longer."""
        detach(self.model, adapter)
        if self._static is not None:
            self._static.forget(adapter)

    def _probe(self) -> ShapeProbe:
        probe = ShapeProbe()
        self._run_model(torch.zeros(2, dtype=torch.int64), torch.arange(2), torch.tensor([1]), probe)
        expected = self.model.config.get_text_config().num_hidden_layers
        if sorted(probe.shapes) != list(range(expected)):
            raise UnsupportedModelError(
                f"{self.ref}: has layers without plain attention, which genarm does not support"
            )
        if probe.dtypes != {self.dtype}:
            names = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in probe.dtypes | {self.dtype}))
            raise UnsupportedModelError(f"{self.ref}: its layers compute in {names} at once; give the dtype float32")
        return probe

    def _run_model(self, ids: Tensor, positions: Tensor, keep: Tensor, attention: AttentionStep) -> Tensor:
        with torch.inference_mode():
            out = self.model(
                input_ids=ids.unsqueeze(0).to(self.device),
                position_ids=positions.unsqueeze(0).to(self.device),
                logits_to_keep=keep if self._is_spread else keep.to(self.device),
                use_cache=False,
                attention=attention,
            )
        logits: Tensor = out.logits[0]
        return logits

    def run(self, chunks: Sequence[Chunk]) -> tuple[Tensor, list[Chunk]]:
        """Run the next tokens of some streams, whose block tables have room for them.

        Returns:
            Logits [m, rows of the LM head] in the model's dtype, and the chunks that they belong to, in order: as many
            rows as each chunk wants. The next run may overwrite the logits.
        """
        with running_on(self.device):
            found = self._static.run(chunks) if self._static is not None else None
            logits, wanting = found or self._run_packed(pack(chunks))
        for chunk in chunks:
            chunk.stream.cached += chunk.count
        return logits, wanting

    def _run_packed(self, packed: PackedStep) -> tuple[Tensor, list[Chunk]]:
        self._segments.tokens = packed.adapters
        keep = torch.tensor(packed.wanted_tokens, dtype=torch.int64)  # may be empty
        ids, positions = torch.from_numpy(packed.ids), torch.from_numpy(packed.positions)
        return self._run_model(ids, positions, keep, self._cache.step(packed)), packed.wanting
