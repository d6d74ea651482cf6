"""Sequences over backbones that are a block pool and nothing else, which is all that the scheduler may know."""

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import pytest

from models.blocks import BlockPool
from models.scheduler import Plan, Scheduler
from models.scoring import ScoredSequence, ScoredStream
from models.sequence import Sequence as Sample
from models.sequence import Stream
from models.spec import SamplingParams


@dataclass(eq=False)
class PoolOnly:
    """A backbone as the scheduler sees it."""

    pool: BlockPool


class Simulation:
    """Plays the engine around a scheduler: runs each plan, checks it, and lets sequences end after their new tokens."""

    def __init__(self, scheduler: Scheduler, backbones: Sequence[PoolOnly]) -> None:
        self.scheduler = scheduler
        self.backbones = backbones
        self.finished: list[Sample | ScoredSequence] = []
        self.added: list[Sample | ScoredSequence] = []
        self.same_beginnings = False
        self._numbers = count(1)

    def add(self, prompts: Sequence[tuple[int, int]], new_tokens: int) -> Sample:
        """Queue a sequence with a stream for each (backbone, prompt tokens)."""
        streams = [Stream(self.backbones[index], None, self._prompt(tokens), tokens) for index, tokens in prompts]
        sampling = SamplingParams(max_new_tokens=new_tokens)
        sample = Sample(None, 0, len(self.added), sampling, [], streams, token_rewards=[[] for _ in prompts[1:]])
        self.added.append(sample)
        self.scheduler.add(sample)
        return sample

    def add_scored(self, prompts: Sequence[tuple[int, int]], response_tokens: int) -> ScoredSequence:
        """Queue a response to score, with a stream for each (backbone, prompt tokens)."""
        response = list(range(response_tokens))
        streams = [
            ScoredStream(
                self.backbones[index], None, self._prompt(tokens) + response[:-1], tokens, model=None, response=response
            )
            for index, tokens in prompts
        ]
        sample = ScoredSequence(None, streams, list(range(len(streams))))
        self.added.append(sample)
        self.scheduler.add(sample)
        return sample

    def _prompt(self, tokens: int) -> list[int]:
        """A prompt that begins like no other, unless all prompts are to begin the same."""
        first = 0 if self.same_beginnings else next(self._numbers) * 1000
        return list(range(first, first + tokens))

    def step(self) -> Plan:
        """One step: schedule, check, run, append a token to what is ready, remove what is finished."""
        plan = self.scheduler.schedule()
        self._check(plan)
        for chunks in plan.chunks.values():
            for chunk in chunks:
                chunk.stream.cached += chunk.count
                if isinstance(chunk.stream, ScoredStream):
                    chunk.stream.logprobs[chunk.stream.places(chunk.wants)] = array("d", [-1.0] * chunk.wants)
        for sample in plan.ready:
            assert all(stream.pending == 0 for stream in sample.streams)
            sample.append(7, 0.0, 0.0, [0.0] * len(sample.token_rewards))
        done: list[Sample | ScoredSequence] = [
            sample for sample in plan.ready if len(sample.response) == sample.sampling.max_new_tokens
        ]
        for scored in plan.scored:
            assert all(len(stream.logprobs) == len(stream.response) for stream in scored.streams)
            assert scored.is_finite
            done.append(scored)
        self.scheduler.remove(done)
        self.finished += done
        return plan

    def run(self, limit: int = 10_000) -> int:
        """Step until nothing is left; the number of steps."""
        for steps in range(limit):
            if not self.step().chunks:
                return steps
        raise AssertionError(f"not finished after {limit} steps")

    def _check(self, plan: Plan) -> None:
        running = self.scheduler.running
        assert len(running) <= self.scheduler.max_running
        for backbone, chunks in plan.chunks.items():
            assert len({id(chunk.stream) for chunk in chunks}) == len(chunks)
            assert all(chunk.stream.backbone is backbone and chunk.count > 0 for chunk in chunks)
            drawn = [chunk.wants for chunk in chunks if not isinstance(chunk.stream, ScoredStream)]
            prefilled = sum(chunk.count for chunk in chunks) - sum(drawn)
            assert prefilled <= self.scheduler.prefill_tokens
            for chunk in chunks:
                end = chunk.stream.cached + chunk.count
                assert end <= len(chunk.stream.tokens)
                assert end <= len(chunk.stream.blocks) * backbone.pool.block_size
                if isinstance(chunk.stream, ScoredStream):
                    assert chunk.wants == min(chunk.count, max(0, end - chunk.stream.first_wanted))
                else:
                    assert chunk.wants == any(chunk.stream in sample.streams for sample in plan.ready)
        assert all(sample in running for sample in (*plan.ready, *plan.scored))
        for sample in self.scheduler.waiting:
            assert all(not stream.blocks and stream.cached == 0 for stream in sample.streams)
        self.check_blocks()

    def check_blocks(self) -> None:
        """Every block is free or in a running sequence's table; tables that share one hold the same tokens in it."""
        for backbone in self.backbones:
            streams = [stream for sample in self.scheduler.running for stream in sample.streams]
            held: dict[int, set[tuple[int, ...]]] = {}
            size = backbone.pool.block_size
            for stream in streams:
                for index, block in enumerate(stream.blocks if stream.backbone is backbone else []):
                    held.setdefault(block, set()).add(tuple(stream.tokens[: (index + 1) * size]))
            assert all(len(beginnings) == 1 for beginnings in held.values())
            assert len(held) + backbone.pool.free == backbone.pool.count


@pytest.fixture
def simulate() -> Callable[..., Simulation]:
    def make(blocks: Sequence[int] = (64, 64), block_size: int = 4, **limits: Any) -> Simulation:
        scheduler = Scheduler(**{"max_running": 4, "prefill_tokens": 8, **limits})
        return Simulation(scheduler, [PoolOnly(BlockPool(size, block_size)) for size in blocks])

    return make
