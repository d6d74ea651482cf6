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


def test_another_failure_fails_the_rows_in_work_and_the_engine_goes_on(
    make_engine: Any, tmp_path: Path, failing_runs: Any
) -> None:
    spec = GenerationSpec.parse(spec_of(make_model(tmp_path / "base"), max_new_tokens=4, ignore_eos=True))
    engine = make_engine()
    guided = engine.load(spec)
    sizes = failing_runs(lambda chunks: len(sizes) == 2, ValueError("broken"))
    first = engine.submit(guided, PromptRow.parse(ROWS[0], 0, spec))
    while engine.step():
        pass
    with pytest.raises(ValueError, match="broken"):
        first.result(timeout=0)
    second = engine.submit(guided, PromptRow.parse(ROWS[0], 0, spec))
    while engine.step():
        pass
    assert len(second.result(timeout=0)[0].tokens) == 4
    assert engine.stats().kv_cache_usage == 0


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
