"""The engine gives the tokens and rewards of the plain loop, for every family, in any mix of rows."""

from pathlib import Path
from typing import Any

import pytest

from models.spec import GenerationSpec, PromptRow
from tests.tiny_models import FAMILIES, OTHER_TEMPLATE, make_adapter, make_model, spec_of

ROWS: list[dict[str, Any]] = [
    {"prompt": "Hi"},
    {"prompt": "A much longer prompt, which takes more than one chunk and more than one block of the cache."},
    {"messages": [{"role": "user", "content": "One"}, {"role": "assistant", "content": "two"}]},
    {"prompt": "Middle length, naïve 漢字.", "weights": {"first": -0.5}},
    {"prompt": "x", "sampling": {"max_new_tokens": 3}},
    {"prompt": "Random", "sampling": {"temperature": 0.9, "top_k": 40, "seed": 7}, "weights": {"first": 2.0}},
    {"prompt": "Nucleus", "sampling": {"temperature": 1.3, "top_p": 0.8, "min_p": 0.02}},
]


@pytest.fixture(params=["kernels", "torch", "static"])
def execution(request: Any) -> str:
    name: str = request.param
    return name


@pytest.fixture
def use_kernels(execution: str) -> bool:
    return execution == "kernels"


@pytest.fixture
def static_decode(execution: str, taped: Any) -> bool:
    return execution == "static"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("arms", [1, 2, 3])
def test_mixed_batch_equals_plain_loop(tmp_path: Path, assert_equals_plain: Any, family: str, arms: int) -> None:
    base = make_model(tmp_path / "base", family, seed=1)
    others = list(FAMILIES)
    refs = [
        make_model(tmp_path / f"arm{i}", others[(others.index(family) + i) % 5], seed=10 + i, template=OTHER_TEMPLATE)
        for i in range(arms)
    ]
    named = [
        (name, ref, weight)
        for name, ref, weight in zip(["first", "second", "third"], refs, [1.0, 0.5, 0.25], strict=False)
    ]
    assert_equals_plain(spec_of(base, *named), ROWS, prefill_tokens=24, max_running=4)


def test_lora_arms_of_the_base_ride_on_its_weights(tmp_path: Path, make_engine: Any, assert_equals_plain: Any) -> None:
    base = make_model(tmp_path / "base", seed=1)
    first = make_adapter(tmp_path / "first", base, seed=2)
    second = make_adapter(tmp_path / "second", base, seed=3, targets=["q_proj", "down_proj", "o_proj"])
    spec = spec_of(base, ("first", first, 1.0), ("second", second, 0.7))
    assert_equals_plain(spec, ROWS)
    guided = make_engine().load(GenerationSpec.parse(spec))
    assert guided.arms[0].backbone is guided.base.backbone is guided.arms[1].backbone


def test_lora_arms_of_another_backbone_share_it(tmp_path: Path, make_engine: Any, assert_equals_plain: Any) -> None:
    base = make_model(tmp_path / "base", "gpt_neox", seed=1)
    backbone = make_model(tmp_path / "backbone", seed=2, template=OTHER_TEMPLATE)
    first = make_adapter(tmp_path / "first", backbone, seed=3)
    second = make_adapter(tmp_path / "second", backbone, seed=4)
    spec = spec_of(base, ("first", first, 1.0), ("second", second, -0.7))
    assert_equals_plain(spec, ROWS)
    guided = make_engine().load(GenerationSpec.parse(spec))
    assert guided.arms[0].backbone is guided.arms[1].backbone is not guided.base.backbone


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_samples_of_a_row_equal_plain_loop(tmp_path: Path, assert_equals_plain: Any, family: str) -> None:
    base = make_model(tmp_path / "base", family, seed=1)
    arm = make_model(tmp_path / "arm", "llama", seed=2, template=OTHER_TEMPLATE)
    spec = spec_of(base, ("first", arm, 0.8), samples=4, temperature=1.0, seed=5)
    assert_equals_plain(spec, ROWS[:3])


def test_preemption_happens_and_is_repaired(tmp_path: Path, make_engine: Any, plain: Any) -> None:
    base = make_model(tmp_path / "base", seed=1)
    arm = make_model(tmp_path / "arm", seed=2)
    spec = GenerationSpec.parse(spec_of(base, ("first", arm, 0.8), max_new_tokens=60, ignore_eos=True))
    engine = make_engine(kv_cache_bytes=20 * 16 * 3 * 2 * 2 * 8 * 4)
    guided = engine.load(spec)
    rows = [PromptRow.parse({"prompt": f"number {index}"}, index, spec) for index in range(8)]
    futures = [engine.submit(guided, row) for row in rows]
    while engine.step():
        pass
    assert engine.stats().preemptions > 0
    for row, future in zip(rows, futures, strict=True):
        assert future.result(timeout=0)[0].tokens == plain(guided, row).tokens
    assert guided.base.backbone.pool.free == guided.base.backbone.pool.count
