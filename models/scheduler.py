"""Which tokens run next: admission, chunked prefill, preemption; knows no tensors."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from models.sequence import Chunk, Sequence, Stream


@dataclass
class Plan:
    """One step: what each backbone runs, and which sequences draw a token after it."""

    chunks: dict[Any, list[Chunk]] = field(default_factory=dict)
    """By backbone."""
    ready: list[Sequence] = field(default_factory=list)


class Scheduler:
    """Decides each step's work, oldest sequence first.

    The streams of a sequence advance in lockstep: the last token of each prompt waits until the prompts of all its
    models can end in the same step. A sequence is admitted when the caches have room for all that it has so far; when
    a cache is full later, the youngest running sequence gives its blocks back and is computed again, with the same
    outcome, since its draws depend on (seed, row, sample, position) alone.

    Args:
        max_running: how many sequences may run at once.
        prefill_tokens: how many prompt tokens a backbone runs in a step, beside the decodes.
    """

    def __init__(self, max_running: int, prefill_tokens: int) -> None:
        self.max_running = max_running
        self.prefill_tokens = prefill_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.preemptions = 0

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        self.waiting.append(sequence)

    def remove(self, gone: Iterable[Sequence]) -> None:
        """Forget sequences that finished or were cancelled, and free their blocks."""
        gone = list(gone)
        for sequence in gone:
            _release(sequence)
        self.running = [sequence for sequence in self.running if sequence not in gone]
        self.waiting = deque(sequence for sequence in self.waiting if sequence not in gone)

    def schedule(self) -> Plan:
        """The next step; empty when there is nothing to run."""
        plan = Plan()
        budgets: dict[Any, int] = {}
        for sequence in list(self.running):
            if sequence in self.running:  # it may have given way to an older one
                self._advance(sequence, plan, budgets)
        while self.waiting and self._can_admit(self.waiting[0], budgets):
            sequence = self.waiting.popleft()
            for stream in sequence.streams:
                stream.backbone.pool.grow(stream.blocks, len(stream.tokens))
            self.running.append(sequence)
            self._advance(sequence, plan, budgets)
        return plan

    def _can_admit(self, sequence: Sequence, budgets: dict[Any, int]) -> bool:
        """Whether there is a place, prefill budget, and memory that leaves each running sequence a block to grow."""
        if len(self.running) >= self.max_running:
            return False
        if any(budgets.get(stream.backbone, self.prefill_tokens) <= 0 for stream in sequence.streams):
            return False
        needed = _missing_blocks((stream, len(stream.tokens)) for stream in sequence.streams)
        return all(pool.free >= blocks + len(self.running) for pool, blocks in needed.items())

    def _advance(self, sequence: Sequence, plan: Plan, budgets: dict[Any, int]) -> None:
        """Plan a sequence's next tokens, if memory allows."""
        counts = self._counts(sequence, budgets)
        if not self._make_room(sequence, counts):
            return
        is_ready = all(count == stream.pending for stream, count in zip(sequence.streams, counts, strict=True))
        for stream, count in zip(sequence.streams, counts, strict=True):
            if count:
                stream.backbone.pool.grow(stream.blocks, stream.cached + count)
                plan.chunks.setdefault(stream.backbone, []).append(Chunk(stream, count, wants_logits=is_ready))
        if is_ready:
            plan.ready.append(sequence)

    def _counts(self, sequence: Sequence, budgets: dict[Any, int]) -> list[int]:
        """How many tokens each stream runs: within the budget all but the last, and that one in all streams or none."""
        counts = []
        for stream in sequence.streams:
            left = budgets.get(stream.backbone, self.prefill_tokens)
            count = min(stream.pending - 1, left)
            budgets[stream.backbone] = left - count
            counts.append(count)
        if all(count == stream.pending - 1 for stream, count in zip(sequence.streams, counts, strict=True)):
            counts = [count + 1 for count in counts]
        return counts

    def _make_room(self, sequence: Sequence, counts: list[int]) -> bool:
        """Free blocks for a sequence by preempting the youngest; False when that was the sequence itself."""
        while not _has_room(sequence, counts):
            youngest = self.running.pop()
            _release(youngest)
            self.waiting.appendleft(youngest)
            self.preemptions += 1
            if youngest is sequence:
                return False
        return True


def _missing_blocks(needs: Iterable[tuple[Stream, int]]) -> dict[Any, int]:
    """Blocks to allocate, by pool, for each stream to hold so many tokens."""
    missing: dict[Any, int] = {}
    for stream, tokens in needs:
        pool = stream.backbone.pool
        missing[pool] = missing.get(pool, 0) + max(0, pool.blocks_for(tokens) - len(stream.blocks))
    return missing


def _has_room(sequence: Sequence, counts: list[int]) -> bool:
    needs = ((stream, stream.cached + count) for stream, count in zip(sequence.streams, counts, strict=True))
    return all(pool.free >= blocks for pool, blocks in _missing_blocks(needs).items())


def _release(sequence: Sequence) -> None:
    for stream in sequence.streams:
        stream.backbone.pool.release(stream.blocks)
        stream.cached = 0
