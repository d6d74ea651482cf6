"""A step that fails costs as little as it can: too little memory shrinks the batch, and the engine always goes on."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.backbone import Backbone
from models.errors import RowError
from models.sequence import Chunk
from models.spec import GenerationSpec, PromptRow
from tests.tiny_models import make_model, spec_of

ROWS = [{"prompt": f"row {'x' * index}"} for index in range(6)]


@pytest.fixture
def failing_runs(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Let forward passes that a test picks raise an error; the list tells the size of each pass."""

    def arm(fails: Callable[[Sequence[Chunk]], bool], error: Exception) -> list[int]:
        run, sizes = Backbone.run, []

        def run_or_fail(backbone: Backbone, chunks: Sequence[Chunk]) -> Any:
            sizes.append(len(chunks))
            if fails(chunks):
                raise error
            return run(backbone, chunks)

        monkeypatch.setattr(Backbone, "run", run_or_fail)
        return sizes

    return arm


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_too_little_memory_shrinks_the_batch_and_changes_no_output(
    generate: Any, tmp_path: Path, failing_runs: Any, error: Exception
) -> None:
    spec = spec_of(make_model(tmp_path / "base"), temperature=1.0, ignore_eos=True)
    expected = generate(spec, ROWS)
    sizes = failing_runs(lambda chunks: len(chunks) > 2, error)
    assert generate(spec, ROWS) == expected
    assert max(sizes[1:]) <= 3


def test_once_it_was_idle_the_engine_runs_as_many_as_before(
    make_engine: Any, tmp_path: Path, failing_runs: Any
) -> None:
    spec = GenerationSpec.parse(spec_of(make_model(tmp_path / "base"), max_new_tokens=4, ignore_eos=True))
    engine = make_engine()
    guided = engine.load(spec)

    def run() -> list[int]:
        first = len(sizes)
        futures = [engine.submit(guided, PromptRow.parse(row, index, spec)) for index, row in enumerate(ROWS)]
        while engine.step():
            pass
        assert all(len(future.result(timeout=0)[0].tokens) == 4 for future in futures)
        return sizes[first:]

    sizes = failing_runs(lambda chunks: len(sizes) == 2, MemoryError())
    assert max(run()[2:]) == 3
    assert max(run()) == 6


def test_a_row_that_does_not_fit_alone_fails_alone(
    generate: Any, make_engine: Any, tmp_path: Path, failing_runs: Any
) -> None:
    base = make_model(tmp_path / "base")
    spec = GenerationSpec.parse(spec_of(base, max_new_tokens=4, ignore_eos=True))
    engine = make_engine()
    guided = engine.load(spec)
    long = {"prompt": "long " * 20}
    failing_runs(lambda chunks: any(chunk.stream.prompt_tokens > 80 for chunk in chunks), MemoryError("too much"))
    futures = [
        engine.submit(guided, PromptRow.parse(row, index, spec)) for index, row in enumerate([ROWS[0], long, ROWS[1]])
    ]
    while engine.step():
        pass
    with pytest.raises(RowError, match="does not fit into memory") as failure:
        futures[1].result(timeout=0)
    assert failure.value.code == "out_of_memory"
    assert [len(futures[index].result(timeout=0)[0].tokens) for index in (0, 2)] == [4, 4]


def test_a_busy_engine_runs_more_at_once_again_bit_by_bit(
    make_engine: Any, tmp_path: Path, failing_runs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.engine.STEPS_TO_GROW", 5)
    spec = GenerationSpec.parse(spec_of(make_model(tmp_path / "base"), max_new_tokens=60, ignore_eos=True))
    engine = make_engine(max_running=4)
    guided = engine.load(spec)
    sizes = failing_runs(lambda chunks: len(sizes) == 2, MemoryError())
    for index, row in enumerate(ROWS):
        engine.submit(guided, PromptRow.parse(row, index, spec))
    for _ in range(20):
        engine.step()
    assert sizes[1:] == [4] + [2] * 5 + [3] * 5 + [4] * 8


@pytest.mark.parametrize("place", [0, 3, 5])
@pytest.mark.parametrize("tokens", [0, 6])
def test_a_row_that_breaks_its_steps_fails_alone_and_changes_no_output(
    generate: Any, make_engine: Any, tmp_path: Path, failing_runs: Any, place: int, tokens: int
) -> None:
    """At its first step, or once it has some tokens; it has two samples, which break both."""
    written = spec_of(make_model(tmp_path / "base"), samples=2, temperature=1.0, ignore_eos=True)
    expected = generate(written, ROWS)
    spec = GenerationSpec.parse(written)
    engine = make_engine(max_running=8)
    guided = engine.load(spec)
    prompt = expected[place][0].prompt_tokens

    def is_broken(chunk: Chunk) -> bool:
        return chunk.stream.prompt_tokens == prompt and len(chunk.stream.tokens) >= prompt + tokens

    failing_runs(lambda chunks: any(map(is_broken, chunks)), ValueError("broken"))
    futures = [engine.submit(guided, PromptRow.parse(row, index, spec)) for index, row in enumerate(ROWS)]
    while engine.step():
        pass
    with pytest.raises(ValueError, match="broken"):
        futures.pop(place).result(timeout=0)
    assert [future.result(timeout=0) for future in futures] == expected[:place] + expected[place + 1 :]
    assert engine.stats().kv_cache_usage == 0


def test_what_breaks_as_it_joins_is_found_in_a_few_steps(make_engine: Any, tmp_path: Path, failing_runs: Any) -> None:
    spec = GenerationSpec.parse(spec_of(make_model(tmp_path / "base"), max_new_tokens=100, ignore_eos=True))
    engine = make_engine()
    guided = engine.load(spec)
    broken = {"prompt": "broken" * 9}
    failing_runs(lambda chunks: any(chunk.stream.prompt_tokens > 50 for chunk in chunks), ValueError("broken"))
    for index in range(31):
        engine.submit(guided, PromptRow.parse(ROWS[0], index, spec))
    engine.step()
    last = engine.submit(guided, PromptRow.parse(broken, 31, spec))
    for _ in range(6):  # 32, 16, 8, 4, 2 and 1 sequences
        assert not last.done()
        engine.step()
    assert last.done()
    engine.step()
    assert engine.stats().running == 31  # those beside it run together again


@pytest.mark.parametrize("use_kernels", [True, False], ids=["kernels", "torch"])
def test_weights_that_are_no_numbers_fail_the_row(make_engine: Any, tmp_path: Path) -> None:
    base, broken = make_model(tmp_path / "base"), make_model(tmp_path / "broken", seed=1)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"].fill_(torch.nan)
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    spec = GenerationSpec.parse(spec_of(base, ("broken", broken, 1.0)))
    engine = make_engine()
    future = engine.submit(engine.load(spec), PromptRow.parse(ROWS[0], 0, spec))
    while engine.step():
        pass
    with pytest.raises(RowError, match="no finite logits") as failure:
        future.result(timeout=0)
    assert failure.value.code == "not_finite"
