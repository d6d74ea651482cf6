"""Decodes in static shapes, replayed as a CUDA graph is, give the same tokens; a step waits for the device once."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from models.blocks import BlockPool
from models.gathered_attention import GatheredCache
from models.scoring import ResponseRow
from models.sequence import Chunk
from models.spec import GenerationSpec, PromptRow
from models.static_decode import Shape, is_worth_padding, shape_of
from tests.fundamentals.test_kernels import streams_of
from tests.tiny_models import FAMILIES, make_adapter, make_model, spec_of

ROWS = [{"prompt": f"row {'x' * (2 * index)}", "sampling": {"max_new_tokens": 8 + 3 * index}} for index in range(7)]
TO_THE_HOST = {
    torch.Tensor.tolist, torch.Tensor.item, torch.Tensor.cpu, torch.Tensor.nonzero,
    torch.Tensor.__bool__, torch.Tensor.__int__, torch.Tensor.__float__, torch.Tensor.__index__, torch.Tensor.__iter__,
    torch.nonzero, torch.equal, torch.allclose, torch.masked_select, torch.unique,
}  # fmt: skip


@pytest.fixture
def use_kernels() -> bool:
    return False


@pytest.fixture
def static_decode() -> bool:
    return True


TARGETS = {"gpt2": ["c_attn"], "gpt_neox": ["query_key_value"]}


@pytest.mark.parametrize("family", FAMILIES)
def test_decodes_are_replayed_and_change_no_token(tmp_path: Path, generate: Any, taped: Any, family: str) -> None:
    base = make_model(tmp_path / "base", family, seed=1)
    adapter = make_adapter(tmp_path / "own", base, seed=2, targets=TARGETS.get(family))
    arms = (("own", adapter, 0.7), ("other", make_model(tmp_path / "other", seed=3), 0.5))
    spec = spec_of(base, *arms, temperature=1.0, ignore_eos=True, samples=2)
    expected = generate(spec, ROWS, static_decode=False)
    assert not taped
    found = generate(spec, ROWS)
    assert [[sample.tokens for sample in row] for row in found] == [[one.tokens for one in row] for row in expected]
    for row, plain in zip(found, expected, strict=True):
        for sample, one in zip(row, plain, strict=True):
            assert sample.base_logprobs == pytest.approx(one.base_logprobs, abs=1e-4)
            for arm, series in sample.token_rewards.items():
                assert series == pytest.approx(one.token_rewards[arm], abs=1e-4)
    assert sum(tape.replays for tape in taped) > 2 * len(taped) > 0


def test_a_model_that_cannot_be_captured_runs_without(
    tmp_path: Path, generate: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    spec = spec_of(make_model(tmp_path / "base"), temperature=1.0, ignore_eos=True)
    expected = generate(spec, ROWS, static_decode=False)
    attempts = []

    def refuse(step: Any) -> Any:
        attempts.append(step)
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr("models.backbone.capture_for", lambda device: refuse)
    found = generate(spec, ROWS)
    assert [row[0].tokens for row in found] == [row[0].tokens for row in expected]
    assert len(attempts) == 1
    assert "without CUDA graphs" in caplog.text
    assert "more" not in caplog.text


class Transfers(TorchFunctionMode):
    """Counts what brings numbers from a device to the host."""

    count = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function in TO_THE_HOST
        return function(*args, **(kwargs or {}))


@contextmanager
def counting() -> Iterator[Transfers]:
    with Transfers() as transfers:
        yield transfers


@pytest.mark.parametrize("static", [True, False], ids=["static", "gathered"])
def test_a_step_copies_to_the_host_once_whatever_is_in_it(tmp_path: Path, make_engine: Any, static: bool) -> None:
    """Two jobs with other models, every kind of sampling, and responses that are scored, in the same steps."""
    base, other = make_model(tmp_path / "base", seed=1), make_model(tmp_path / "other", seed=2, extra=["<new>"])
    engine = make_engine(static_decode=static, prefill_tokens=16)
    specs = [
        GenerationSpec.parse(spec_of(base, ("arm", other, 0.5), temperature=1.0, ignore_eos=True)),
        GenerationSpec.parse(spec_of(other, ignore_eos=True)),
    ]
    sampling: Sequence[dict[str, Any]] = [{}, {"top_k": 5}, {"top_p": 0.7}, {"min_p": 0.1}, {"temperature": 0.0}]
    guided = [engine.load(spec) for spec in specs]
    for one, spec in zip(guided, specs, strict=True):
        for index, fields in enumerate(sampling):
            row = {"prompt": "p" * (1 + 9 * index), "sampling": fields}
            engine.submit(one, PromptRow.parse(row, index, spec))
        row = {"prompt": "p", "response": "scored " * 6}
        engine.score(one, ResponseRow.parse(row, 9, spec))
    steps = 0
    while True:
        with counting() as transfers:
            went_on = engine.step()
        if not went_on:
            break
        assert transfers.count <= 1
        steps += transfers.count
    assert steps >= 12


def chunks_of(*cached: int, adapters: Sequence[str | None] = ()) -> list[Chunk]:
    streams = streams_of(list(cached), seed=0)
    for stream, length, adapter in zip(streams, cached, adapters or [None] * len(cached), strict=True):
        stream.cached, stream.adapter = length, adapter
    return [Chunk(stream, 1, 1) for stream in streams]


def test_shapes_are_few() -> None:
    found = {shape_of(chunks_of(*[length] * rows))[0] for rows in range(1, 65) for length in (3, 15, 40, 50)}
    assert {shape.rows for shape in found} == {1, 2, 4, 8, 16, 32, 48, 64}
    assert {shape.blocks for shape in found} == {1, 4}


def test_each_adapter_has_rows_of_its_own() -> None:
    shape, rows = shape_of(chunks_of(1, 2, 3, 17, 5, adapters=["b", None, "b", "a", "b"]))
    assert shape == Shape(((None, 1), ("a", 1), ("b", 4)), 2)
    assert [chunk and chunk.stream.cached for chunk in rows] == [2, 17, 1, 3, 5, None]


def test_long_rows_beside_many_short_ones_are_not_padded() -> None:
    def is_static(*cached: int) -> bool:
        chunks = chunks_of(*cached)
        return is_worth_padding(shape_of(chunks)[0], chunks)

    assert is_static(*[10] * 9)
    assert is_static(10, 1000)
    assert not is_static(1000, *[10] * 20)


@pytest.mark.parametrize("static", [True, False], ids=["static", "gathered"])
def test_what_another_row_left_in_the_cache_is_not_read(
    tmp_path: Path, generate: Any, monkeypatch: pytest.MonkeyPatch, static: bool
) -> None:
    """All that was never written is NaN, as another row's numbers may be."""
    spec = spec_of(make_model(tmp_path / "base"), temperature=1.0, ignore_eos=True)
    expected = generate(spec, ROWS, static_decode=static)
    make = GatheredCache.__init__

    def poisoned(cache: GatheredCache, *args: Any) -> None:
        make(cache, *args)
        for blocks in (*cache.keys.values(), *cache.values.values()):
            blocks.fill_(torch.nan)

    grow = BlockPool.grow

    def without_block_0(pool: BlockPool, table: Any, tokens: int) -> None:
        if 0 in pool._empty:
            pool._empty.remove(0)  # nobody gets it, so that it stays as it is
        grow(pool, table, tokens)

    monkeypatch.setattr(GatheredCache, "__init__", poisoned)
    monkeypatch.setattr(BlockPool, "grow", without_block_0)
    for prefill_tokens in (512, 7):
        found = generate(spec, ROWS, static_decode=static, prefill_tokens=prefill_tokens)
        assert [row[0].tokens for row in found] == [row[0].tokens for row in expected]
