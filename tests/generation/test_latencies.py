"""The times to tokens: every token drawn is in one of two histograms."""

from pathlib import Path
from typing import Any

import pytest

from models.latencies import Buckets, Latencies
from models.sequence import Sequence
from models.spec import GenerationSpec, PromptRow, SamplingParams
from tests.tiny_models import make_model


def test_a_duration_falls_into_the_first_bucket_that_is_long_enough() -> None:
    buckets = Buckets((1.0, 2.0))
    for seconds in (0.5, 1.0, 1.5, 7.0):
        buckets.add(seconds)
    assert buckets.counts == [2, 1, 1]
    assert buckets.seconds == 10.0


def test_the_first_token_counts_from_the_arrival_and_each_other_from_the_one_before() -> None:
    sequence = Sequence(None, 0, 0, SamplingParams(), (), [], arrived_at=10.0)
    latencies = Latencies()
    for now in (13.0, 13.5, 15.0):
        sequence.append(1, 0.0, 0.0, ())
        latencies.note(sequence, now)
    assert (sum(latencies.first_token.counts), latencies.first_token.seconds) == (1, 3.0)
    assert (sum(latencies.inter_token.counts), latencies.inter_token.seconds) == (2, 2.0)


@pytest.mark.parametrize("kv_cache_bytes", [16 * 2**20, 2**16], ids=["roomy", "preempting"])
def test_an_engine_counts_every_token_that_it_draws(make_engine: Any, tmp_path: Path, kv_cache_bytes: int) -> None:
    base = make_model(tmp_path / "base")
    sampling = {"max_new_tokens": 24, "ignore_eos": True}
    spec = GenerationSpec.parse({"base": str(base), "samples": 2, "sampling": sampling})
    engine = make_engine(kv_cache_bytes=kv_cache_bytes)
    guided = engine.load(spec)
    for index in range(6):
        engine.submit(guided, PromptRow.parse({"prompt": f"row {index} " * 4}, index, spec))
    while engine.step():
        pass
    stats = engine.stats()
    assert (stats.preemptions > 0) == (kv_cache_bytes == 2**16)
    assert sum(stats.latencies.first_token.counts) == 12
    assert sum(stats.latencies.inter_token.counts) == stats.generated_tokens - 12 == 12 * 23
    assert stats.latencies.first_token.seconds > 0
