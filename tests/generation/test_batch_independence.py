"""What else is in the batch changes nothing: limits, neighbours, order, jobs, preemption, comings and goings."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.completion import Completion
from models.engine import Engine
from models.spec import GenerationSpec, PromptRow
from tests.tiny_models import OTHER_TEMPLATE, make_adapter, make_model, spec_of

BYTES_PER_BLOCK = 16 * 3 * 2 * 2 * 8 * 4
"""Of a tiny Llama's KV cache: 16 tokens, 3 layers, keys and values, 2 heads of 8 float32 numbers."""

ROWS: list[dict[str, Any]] = [
    {"prompt": "word " * 13},
    {"prompt": "Hi", "weights": {"first": -1.0, "second": 2.0}},
    {"prompt": "word " * 4, "sampling": {"seed": 77, "temperature": 1.4}},
    {"prompt": "naïve 漢字", "weights": {"second": 0}},
    {"messages": [{"role": "user", "content": "One"}, {"role": "assistant", "content": "two"}]},
    {"prompt": "short", "sampling": {"max_new_tokens": 3, "ignore_eos": False}},
    {"prompt": "filtered", "sampling": {"top_k": 9, "top_p": 0.9, "min_p": 0.01}},
    {"prompt": "greedy", "sampling": {"temperature": 0}},
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    base = make_model(folder / "base", seed=1)
    return {
        "base": base,
        "adapter": make_adapter(folder / "adapter", base, seed=2),
        "other": make_model(folder / "other", "gpt2", seed=3, template=OTHER_TEMPLATE),
    }


@pytest.fixture
def spec(models: dict[str, Path]) -> dict[str, Any]:
    """Two samples a row, at temperature 1, with an adapter and a model of another family."""
    arms = ("first", models["adapter"], 0.8), ("second", models["other"], 0.5)
    return spec_of(models["base"], *arms, samples=2, temperature=1.0, max_new_tokens=24, ignore_eos=True)


def assert_same(expected: Sequence[Completion], found: Sequence[Completion]) -> None:
    for one, other in zip(expected, found, strict=True):
        assert (one.tokens, one.text, one.finish_reason) == (other.tokens, other.text, other.finish_reason)
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
        assert one.token_rewards.keys() == other.token_rewards.keys()
        for name, series in one.token_rewards.items():
            assert series == pytest.approx(other.token_rewards[name], abs=1e-4)


@pytest.fixture
def alone(generate: Callable[..., Any]) -> Callable[..., list[Completion]]:
    """A row's completions from an engine that has nothing else to do."""

    def run(spec: dict[str, Any], rows: Sequence[dict[str, Any]], index: int) -> list[Completion]:
        found: list[Completion] = generate(spec, rows, only=[index])[0]
        return found

    return run


LIMITS: list[dict[str, Any]] = [
    {"max_running": 1},
    {"max_running": 3},
    {"max_running": 32, "prefill_tokens": 5},
    {"max_running": 32, "prefill_tokens": 1},
    {"max_running": 32, "kv_cache_bytes": 24 * BYTES_PER_BLOCK},
]


@pytest.mark.parametrize("limits", LIMITS, ids=str)
@pytest.mark.parametrize("use_kernels", [True, False], ids=["kernels", "torch"])
def test_limits_change_no_output(generate: Any, spec: dict[str, Any], limits: dict[str, int]) -> None:
    expected = generate(spec, ROWS, max_running=32)
    for one, other in zip(expected, generate(spec, ROWS, **limits), strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("limits", LIMITS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_with_kernels_limits_change_no_bit(
    generate: Any, spec: dict[str, Any], limits: dict[str, int], dtype: str
) -> None:
    """In bfloat16 too, and down to the last digit of each reward: every row's arithmetic depends on that row alone."""
    assert generate(spec, ROWS, **limits, dtype=dtype) == generate(spec, ROWS, max_running=32, dtype=dtype)


def test_no_prompt_leaks_into_other_rows(generate: Any, alone: Any, models: dict[str, Path]) -> None:
    """Greedy, so that rows differ by their prompts alone."""
    spec = spec_of(models["base"], ("first", models["other"], 1.0), ignore_eos=True)
    rows = [{"prompt": f"{letter * 5} {'and more ' * (index % 3)}"} for index, letter in enumerate("abcdef")]
    together = generate(spec, rows)
    assert len({tuple(completions[0].tokens) for completions in together}) == len(rows)
    for index, completions in enumerate(together):
        assert_same(alone(spec, rows, index), completions)


def test_state_follows_rows_that_move_up(generate: Any, alone: Any, spec: dict[str, Any]) -> None:
    """Rows end one by one, in an order of their own, so that the places of the others change in every step."""
    rows = [
        {"prompt": f"row {index}", "weights": {"first": index / 2}, "sampling": {"max_new_tokens": 1 + (5 * index) % 8}}
        for index in range(8)
    ]
    for index, completions in enumerate(generate(spec, rows)):
        assert len(completions[0].tokens) == 1 + (5 * index) % 8
        assert_same(alone(spec, rows, index), completions)


def test_sampling_belongs_to_its_row(generate: Any, alone: Any, spec: dict[str, Any]) -> None:
    own = [
        {"temperature": 0},
        {"temperature": 2.5, "seed": 9},
        {"top_k": 1, "max_new_tokens": 4},
        {"min_p": 0.3, "max_new_tokens": 7},
        {"seed": 9, "stop": ["e"]},
    ]
    rows = [{"prompt": "the same prompt", "sampling": sampling} for sampling in own]
    together = generate(spec, rows)
    for index, completions in enumerate(together):
        assert_same(alone(spec, rows, index), completions)
    assert together[0][0].tokens == together[0][1].tokens  # greedy samples are equal, random ones are not
    assert together[1][0].tokens != together[1][1].tokens


def test_equal_rows_draw_by_their_index(generate: Any, spec: dict[str, Any]) -> None:
    outputs = [c.tokens for row in generate(spec, [{"prompt": "the same"}] * 3) for c in row]
    assert len({tuple(tokens) for tokens in outputs}) == 6


def test_the_order_of_submission_changes_nothing(generate: Any, spec: dict[str, Any]) -> None:
    indexes = list(range(len(ROWS)))
    backwards = generate(spec, ROWS, only=indexes[::-1], max_running=3)
    for one, other in zip(generate(spec, ROWS), backwards[::-1], strict=True):
        assert_same(one, other)


def test_jobs_with_other_arms_share_a_step(make_engine: Any, generate: Any, models: dict[str, Path]) -> None:
    base, adapter, other = models["base"], models["adapter"], models["other"]
    random = {"temperature": 1.0, "ignore_eos": True}
    specs = [
        spec_of(base, ("first", adapter, 1.0), **random),
        spec_of(base, ("first", other, 1.0), ("second", adapter, -0.5), **random),
        spec_of(base, **random),
        spec_of(other, ("first", base, 0.7), samples=2, **random),
        spec_of(adapter, ("first", base, 0.7), **random),
    ]
    rows = [{"prompt": f"prompt {'x' * index}"} for index in range(3)]
    engine = make_engine()
    futures = []
    for fields in specs:
        guided = engine.load(GenerationSpec.parse(fields))
        futures.append(
            [engine.submit(guided, PromptRow.parse(row, index, guided.spec)) for index, row in enumerate(rows)]
        )
    finish(engine)
    for fields, row_futures in zip(specs, futures, strict=True):
        for expected, future in zip(generate(fields, rows), row_futures, strict=True):
            assert_same(expected, future.result(timeout=0))


def finish(engine: Engine) -> None:
    while engine.step():
        pass


@pytest.fixture(scope="module")
def solo(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Completion]]:
    """Outputs of single rows by index, kept over the examples of the test below."""
    return {}


@settings(deadline=None, derandomize=True, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, 25), st.integers(0, len(ROWS) - 1)), min_size=2, max_size=10),
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9)), max_size=4),
    st.sampled_from([22, 40, 400]),
)
def test_rows_come_and_go_at_any_step(
    make_engine: Any,
    alone: Any,
    spec: dict[str, Any],
    solo: dict[int, list[Completion]],
    arrivals: list[tuple[int, int]],
    cancels: list[tuple[int, int]],
    blocks: int,
) -> None:
    engine = make_engine(max_running=5, prefill_tokens=16, kv_cache_bytes=blocks * BYTES_PER_BLOCK)
    guided = engine.load(GenerationSpec.parse(spec))
    submitted = []
    for step in range(31):
        for at, index in arrivals:
            if at == step:
                row = PromptRow.parse(ROWS[index], index, guided.spec)
                submitted.append((index, engine.submit(guided, row)))
        for at, place in cancels:
            if at == step and place < len(submitted):
                submitted[place][1].cancel()
        engine.step()
    finish(engine)
    for index, future in submitted:
        if not future.cancelled():
            if index not in solo:
                solo[index] = alone(spec, ROWS, index)
            assert_same(solo[index], future.result(timeout=0))
    for model in guided.models:
        assert model.backbone.pool.free == model.backbone.pool.count
