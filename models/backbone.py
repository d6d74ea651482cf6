"""One set of weights with the adapters that ride on it: a forward pass over rows of several sequences."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models.adapters import LowRank, Segments, adapter_segments, attach
from models.attention import AttentionStep, CachedAttention, Run, ShapeProbe
from models.blocks import BlockPool
from models.errors import UnsupportedModelError
from models.kv_cache import KVCache, bytes_per_token
from models.sequence import Chunk, Stream

BLOCK_SIZE = 16


class Backbone:
    """A model's weights, its KV cache and its adapters; one thread runs it.

    Args:
        model: a causal language model loaded with our attention.
        ref: its reference, for messages.
        cache_bytes: memory for keys and values.

    Raises:
        UnsupportedModelError: not every layer of the model goes through our attention, or the budget holds no block.
    """

    def __init__(self, model: nn.Module, ref: str, cache_bytes: int) -> None:
        self.model: Any = model
        self.ref = ref
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self.adapters: set[str] = set()
        self._segments = Segments()
        shapes = self._probe_shapes()
        blocks = cache_bytes // (bytes_per_token(shapes, self.dtype) * BLOCK_SIZE)
        if blocks < 1:
            raise UnsupportedModelError(f"{ref}: a KV cache of {cache_bytes} bytes does not hold {BLOCK_SIZE} tokens")
        self.pool = BlockPool(blocks, BLOCK_SIZE)
        self._cache = KVCache(shapes, blocks, BLOCK_SIZE, self.dtype, self.device)

    def attach(self, adapter: str, updates: dict[str, LowRank], ref: str) -> None:
        """Let an adapter ride on this backbone under the name `adapter`.

        Raises:
            UnsupportedModelError: it adapts something else than inner linear layers.
        """
        attach(self.model, self._segments, adapter, updates, ref)
        self.adapters.add(adapter)

    def _probe_shapes(self) -> dict[int, Any]:
        probe = ShapeProbe()
        self._run_model(torch.zeros(2, dtype=torch.int64), torch.arange(2), torch.tensor([1]), probe)
        expected = self.model.config.get_text_config().num_hidden_layers
        if sorted(probe.shapes) != list(range(expected)):
            raise UnsupportedModelError(
                f"{self.ref}: has layers without plain attention, which genarm does not support"
            )
        return probe.shapes

    def _run_model(self, ids: Tensor, positions: Tensor, keep: Tensor, attention: AttentionStep) -> Tensor:
        with torch.inference_mode():
            out = self.model(
                input_ids=ids.unsqueeze(0).to(self.device),
                position_ids=positions.unsqueeze(0).to(self.device),
                logits_to_keep=keep.to(self.device),
                use_cache=False,
                attention=attention,
            )
        logits: Tensor = out.logits[0]
        return logits

    def run(self, chunks: Sequence[Chunk]) -> tuple[Tensor, list[Stream]]:
        """Run the next tokens of some streams, whose block tables have room for them.

        Returns:
            Logits [m, rows of the LM head] in the model's dtype, and the m streams that they belong to, in order: those
            whose chunk wants logits.
        """
        order = sorted(chunks, key=_by_adapter_then_length)
        ids: list[int] = []
        slots: list[int] = []
        positions: list[int] = []
        adapters: list[str | None] = []
        last_tokens: list[int] = []
        streams: list[Stream] = []
        for chunk in order:
            stream, first = chunk.stream, chunk.stream.cached
            span = range(first, first + chunk.count)
            ids.extend(stream.tokens[first : first + chunk.count])
            positions.extend(span)
            slots.extend(stream.blocks[p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE for p in span)
            adapters.extend([stream.adapter] * chunk.count)
            if chunk.wants_logits:
                last_tokens.append(len(ids) - 1)
                streams.append(stream)
        self._segments.tokens = adapter_segments(adapters)
        attention = CachedAttention(self._cache, torch.tensor(slots, device=self.device), self._runs(order))
        keep = torch.tensor(last_tokens, dtype=torch.int64)  # may be empty
        logits = self._run_model(torch.tensor(ids), torch.tensor(positions), keep, attention)
        for chunk in order:
            chunk.stream.cached += chunk.count
        return logits, streams

    def _runs(self, order: Sequence[Chunk]) -> list[Run]:
        """Group consecutive decodes of similar length into one run each; a longer chunk is a run of its own."""
        runs: list[Run] = []
        group: list[Chunk] = []
        start = 0
        for chunk in order:
            if group and (chunk.count > 1 or group[0].count > 1 or _length_bucket(chunk) != _length_bucket(group[0])):
                runs.append(self._run_of(group, start))
                start += sum(member.count for member in group)
                group = []
            group.append(chunk)
        if group:
            runs.append(self._run_of(group, start))
        return runs

    def _run_of(self, group: Sequence[Chunk], start: int) -> Run:
        count = group[0].count
        blocks = max(self.pool.blocks_for(chunk.stream.cached + count) for chunk in group)
        tables = [(chunk.stream.blocks + [0] * blocks)[:blocks] for chunk in group]
        positions = [list(range(chunk.stream.cached, chunk.stream.cached + count)) for chunk in group]
        return Run(
            tokens=slice(start, start + len(group) * count),
            rows=len(group),
            tables=torch.tensor(tables, device=self.device),
            positions=torch.tensor(positions, device=self.device),
        )


def _by_adapter_then_length(chunk: Chunk) -> tuple[str, int, int]:
    return chunk.stream.adapter or "", chunk.count, chunk.stream.cached


def _length_bucket(chunk: Chunk) -> int:
    """Lengths in one bucket differ by less than a factor of two, which bounds the padding."""
    return (chunk.stream.cached + chunk.count).bit_length()
