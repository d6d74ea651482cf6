"""Which tokens run next: admission, chunked prefill, preemption; knows no tensors."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from models.scoring import ScoredSequence
from models.sequence import Chunk, Sequence, Stream

FEWEST_PREFILL_TOKENS = 64
"""A step beside many decodes runs at least so many prompt tokens, so that long prompts get on."""

AnySequence = Sequence | ScoredSequence


@dataclass
class Plan:
    """One step: what each backbone runs, which sequences draw a token after it, and which are scored by it."""

    chunks: dict[Any, list[Chunk]] = field(default_factory=dict)
    """By backbone."""
    ready: list[Sequence] = field(default_factory=list)
    scored: list[ScoredSequence] = field(default_factory=list)


class Scheduler:
    """Decides each step's work, oldest sequence first.

    The streams of a sequence advance in lockstep: the last token of each prompt waits until the prompts of all its
    models can end in the same step. Those of a sequence that is scored run as prompts do, each at its own pace.

    A sequence is admitted when the caches have room for all that it has so far; when a cache is full later, the
    youngest running sequence gives its blocks back and is computed again, with the same outcome, since its draws depend
    on (seed, row, sample, position) alone.

    A stream whose next block is already in the cache, because another stream of the same model began with the same
    tokens, shares it. That other stream may run those tokens in this very step: in each layer, all keys and values of a
    step are written before any are read.

    Args:
        max_running: how many sequences may run at once.
        prefill_tokens: how many prompt tokens a backbone runs in a step. Once half of the places decode, it runs fewer,
            so that a long prompt does not hold up the others.
    """

    def __init__(self, max_running: int, prefill_tokens: int) -> None:
        self.max_running = max_running
        self.prefill_tokens = prefill_tokens
        self.waiting: deque[AnySequence] = deque()
        self.running: list[AnySequence] = []
        self.preemptions = 0

    def add(self, sequence: AnySequence) -> None:
        """Queue a sequence."""
        self.waiting.append(sequence)

    def remove(self, gone: Iterable[AnySequence]) -> None:
        """Forget sequences that finished or were cancelled, and free their blocks."""
        gone = set(gone)
        for sequence in gone:
            _release(sequence)
        left = [sequence for sequence in self.running if sequence not in gone]
        if len(self.running) - len(left) < len(gone):  # not all of them run; those that wait may be many
            self.waiting = deque(sequence for sequence in self.waiting if sequence not in gone)
        self.running = left

    def preempt_all(self) -> None:
        """Put what runs back to the front of the queue, to be computed again; nothing in the caches is trusted.

        The younger half goes first: what breaks a step mostly does so when it joins, and is found soon.
        """
        older = len(self.running) - len(self.running) // 2
        for sequence in reversed([*self.running[older:], *self.running[:older]]):
            _release(sequence)
            self.waiting.appendleft(sequence)
            for stream in sequence.streams:
                stream.backbone.pool.forget()
        self.preemptions += len(self.running)
        self.running = []

    def schedule(self) -> Plan:
        """The next step; empty when there is nothing to run."""
        plan = Plan()
        budgets = _Budgets(self._prefill_budget())
        for sequence in self.running:  # the youngest, at its end, may give way meanwhile
            self._advance(sequence, plan, budgets)
        while self.waiting and len(self.running) < self.max_running and budgets.has_left(self.waiting[0]):
            sequence = self.waiting[0]
            for stream in sequence.streams:
                _share(stream)
            if not self._has_memory_for(sequence):
                _release(sequence)
                break
            self.running.append(self.waiting.popleft())
            self._advance(sequence, plan, budgets)
        return plan

    def _prefill_budget(self) -> int:
        """Prompt tokens for each backbone; few where most of the sequences would wait for them to decode on."""
        decodes = sum(sequence.is_decoding for sequence in self.running)
        if 2 * decodes < min(self.max_running, len(self.running) + len(self.waiting)):
            return self.prefill_tokens
        return min(self.prefill_tokens, max(FEWEST_PREFILL_TOKENS, 2 * decodes))

    def _has_memory_for(self, sequence: AnySequence) -> bool:
        """Whether a new sequence leaves each running stream the blocks that it still needs, and one to grow."""
        needs = [(stream, len(stream.tokens)) for stream in sequence.streams]
        needs += [
            (stream, len(stream.tokens) + stream.backbone.pool.block_size)
            for one in self.running
            for stream in one.streams
        ]
        return all(pool.free >= blocks for pool, blocks in _missing_blocks(needs).items())

    def _advance(self, sequence: AnySequence, plan: Plan, budgets: "_Budgets") -> None:
        """Plan a sequence's next tokens, if memory allows."""
        for stream in sequence.streams:
            _share(stream)
        counts = budgets.counts(sequence)
        if not self._make_room(sequence, counts):
            return
        is_at_end = all(count == stream.pending for stream, count in zip(sequence.streams, counts, strict=True))
        for stream, count in zip(sequence.streams, counts, strict=True):
            if count:
                _take(stream, count)
                plan.chunks.setdefault(stream.backbone, []).append(stream.next_chunk(count))
        if is_at_end:
            if isinstance(sequence, ScoredSequence):
                plan.scored.append(sequence)
            else:
                plan.ready.append(sequence)

    def _make_room(self, sequence: AnySequence, counts: list[int]) -> bool:
        """Free blocks for a sequence by preempting the youngest; False when that was the sequence itself."""
        while not _has_room(sequence, counts):
            youngest = self.running.pop()
            _release(youngest)
            self.waiting.appendleft(youngest)
            self.preemptions += 1
            if youngest is sequence:
                return False
        return True


class _Budgets:
    """How many more prompt tokens each backbone may run in a step."""

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens
        self._left: dict[Any, int] = {}

    def has_left(self, sequence: AnySequence) -> bool:
        """Whether a new sequence could begin."""
        return all(self._left.get(stream.backbone, self._tokens) > 0 for stream in sequence.streams)

    def counts(self, sequence: AnySequence) -> list[int]:
        """How many tokens each stream runs within the budget; the last before a draw in all or none, and free."""
        last = 0 if isinstance(sequence, ScoredSequence) else 1
        counts = []
        for stream in sequence.streams:
            left = self._left.get(stream.backbone, self._tokens)
            count = min(stream.pending - last, left)
            self._left[stream.backbone] = left - count
            counts.append(count)
        if all(count == stream.pending - last for stream, count in zip(sequence.streams, counts, strict=True)):
            counts = [count + last for count in counts]
        return counts


def _share(stream: Stream) -> None:
    """Take the blocks that hold the stream's next tokens already, up to the first whose logits are wanted."""
    pool = stream.backbone.pool
    size = pool.block_size
    while stream.cached == len(stream.blocks) * size and stream.cached + size <= stream.first_wanted:
        if not pool.share(stream.blocks, stream.digest(len(stream.blocks), size)):
            return
        stream.cached += size


def _take(stream: Stream, count: int) -> None:
    """Take blocks for the next tokens, and offer those that they fill."""
    pool, end = stream.backbone.pool, stream.cached + count
    pool.grow(stream.blocks, end)
    for block in range(stream.cached // pool.block_size, end // pool.block_size):
        pool.publish(stream.blocks[block], stream.digest(block, pool.block_size))


def _missing_blocks(needs: Iterable[tuple[Stream, int]]) -> dict[Any, int]:
    """Blocks to allocate, by pool, for each stream to hold so many tokens."""
    missing: dict[Any, int] = {}
    for stream, tokens in needs:
        pool = stream.backbone.pool
        missing[pool] = missing.get(pool, 0) + max(0, pool.blocks_for(tokens) - len(stream.blocks))
    return missing


def _has_room(sequence: AnySequence, counts: list[int]) -> bool:
    needs = ((stream, stream.cached + count) for stream, count in zip(sequence.streams, counts, strict=True))
    return all(pool.free >= blocks for pool, blocks in _missing_blocks(needs).items())


def _release(sequence: AnySequence) -> None:
    for stream in sequence.streams:
        stream.backbone.pool.release(stream.blocks)
        stream.cached = 0
