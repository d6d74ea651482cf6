"""Models come and go within a budget: what nobody uses is dropped and really freed, and no output changes."""

import gc
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from models.adapters import AdaptedLinear, AdaptedPackedLinear
from models.backbone import Backbone
from models.engine import Engine
from models.errors import ModelMemoryError, ModelsError, ModelsInUseError, UnsupportedModelError
from models.memory import model_bytes, stored_bytes
from models.spec import GenerationSpec, PromptRow
from tests.tiny_models import make_adapter, make_model, spec_of

CACHE = 2**20
ROWS = [{"prompt": f"row {'x' * index}"} for index in range(3)]


@pytest.fixture(params=[True, False], ids=["kernels", "torch"])
def use_kernels(request: Any) -> bool:
    use: bool = request.param
    return use


@pytest.fixture
def budget_of(make_engine: Any) -> Callable[..., int]:
    """Bytes that models of these folders and their caches take."""

    def load(*folders: Path) -> int:
        engine = make_engine(kv_cache_bytes=CACHE)
        for folder in folders:
            engine.load(GenerationSpec.parse(spec_of(folder)))
        size: int = engine.stats().model_bytes
        return size

    return load


def run(engine: Engine, spec: dict[str, Any], rows: Sequence[dict[str, Any]] = ROWS) -> Any:
    """Load, generate and let go, as a shard does."""
    parsed = GenerationSpec.parse(spec)
    guided = engine.load(parsed)
    futures = [engine.submit(guided, PromptRow.parse(row, index, parsed)) for index, row in enumerate(rows)]
    while engine.step():
        pass
    engine.let_go(guided)
    return [future.result(timeout=0) for future in futures]


def test_alternating_jobs_with_memory_for_one_model_give_the_same_as_with_memory_for_all(
    tmp_path: Path, make_engine: Any, budget_of: Any
) -> None:
    bases = [make_model(tmp_path / name, seed=seed) for seed, name in enumerate(("first", "second"))]
    specs = [spec_of(base, temperature=1.0, ignore_eos=True) for base in bases]
    roomy = make_engine(kv_cache_bytes=CACHE)
    expected = [run(roomy, spec) for spec in specs]
    assert roomy.stats().model_evictions == 0
    tight = make_engine(kv_cache_bytes=CACHE, model_memory_bytes=budget_of(bases[0]))
    for _ in range(3):
        assert [run(tight, spec) for spec in specs] == expected
    assert tight.stats().model_evictions == 5
    assert tight.stats().model_bytes <= tight.stats().model_budget_bytes == budget_of(bases[0])


def test_what_is_dropped_is_freed_although_its_job_is_still_known(
    tmp_path: Path, make_engine: Any, budget_of: Any
) -> None:
    first, second = (make_model(tmp_path / name) for name in ("first", "second"))
    engine = make_engine(kv_cache_bytes=CACHE, model_memory_bytes=budget_of(first))
    spec = GenerationSpec.parse(spec_of(first))
    guided = engine.load(spec)
    future = engine.submit(guided, PromptRow.parse(ROWS[0], 0, spec))
    while engine.step():
        pass
    weights = weakref.ref(guided.base.backbone.model)
    engine.let_go(guided)
    assert weights() is not None
    gc.disable()  # rows and their requests refer to each other; nobody but the engine may clear that up
    try:
        run(engine, spec_of(second))
        assert weights() is None
    finally:
        gc.enable()
    assert not engine.hold(guided)
    with pytest.raises(RuntimeError, match="dropped"):
        engine.submit(guided, PromptRow.parse(ROWS[0], 0, spec)).result(timeout=0)
    assert future.result(timeout=0)


def test_models_in_use_stay(tmp_path: Path, make_engine: Any, budget_of: Any) -> None:
    first, second = (make_model(tmp_path / name) for name in ("first", "second"))
    engine = make_engine(kv_cache_bytes=CACHE, model_memory_bytes=budget_of(first))
    spec = GenerationSpec.parse(spec_of(first))
    guided = engine.load(spec)
    with pytest.raises(ModelsInUseError, match="models in use leave no room"):
        engine.load(GenerationSpec.parse(spec_of(second)))
    future = engine.submit(guided, PromptRow.parse(ROWS[0], 0, spec))
    engine.let_go(guided)
    engine.step()
    with pytest.raises(ModelsInUseError):  # the row in the engine is a user of its own
        engine.load(GenerationSpec.parse(spec_of(second)))
    future.cancel()
    engine.step()
    run(engine, spec_of(second))


def test_a_row_whose_samples_all_fail_is_one_user(tmp_path: Path, make_engine: Any, budget_of: Any) -> None:
    first, second = (make_model(tmp_path / name) for name in ("first", "second"))
    weights = load_file(first / "model.safetensors")
    weights["model.norm.weight"].fill_(torch.nan)
    save_file(weights, first / "model.safetensors", metadata={"format": "pt"})
    engine = make_engine(kv_cache_bytes=CACHE, model_memory_bytes=budget_of(first))
    spec = GenerationSpec.parse(spec_of(first, samples=3))
    guided = engine.load(spec)
    future = engine.submit(guided, PromptRow.parse(ROWS[0], 0, spec))
    while engine.step():
        pass
    assert future.exception(timeout=0) is not None
    with pytest.raises(ModelsInUseError):
        engine.load(GenerationSpec.parse(spec_of(second)))
    engine.let_go(guided)
    run(engine, spec_of(second))


@pytest.mark.parametrize("ending", ["refused", "stopped"])
def test_rows_that_end_early_are_no_users(tmp_path: Path, make_engine: Any, budget_of: Any, ending: str) -> None:
    first, second = (make_model(tmp_path / name) for name in ("first", "second"))
    engine = make_engine(kv_cache_bytes=CACHE, model_memory_bytes=budget_of(first))
    spec = GenerationSpec.parse(spec_of(first, samples=3))
    guided = engine.load(spec)
    if ending == "refused":
        assert engine.submit(guided, PromptRow.parse({"prompt": "x" * 500}, 0, spec)).exception() is not None
    else:
        early = engine.submit(guided, PromptRow.parse(ROWS[0], 0, spec))
        engine.step()
        engine.stop()
        late = engine.submit(guided, PromptRow.parse(ROWS[0], 0, spec))
        assert early.cancelled()
        assert late.cancelled()
    engine.let_go(guided)
    engine.let_go(engine.load(GenerationSpec.parse(spec_of(second))))


def test_a_job_that_does_not_fit_alone_is_refused_with_the_remedy(
    tmp_path: Path, make_engine: Any, budget_of: Any
) -> None:
    base, arm = (make_model(tmp_path / name) for name in ("base", "arm"))
    engine = make_engine(kv_cache_bytes=CACHE, model_memory_bytes=budget_of(base))
    with pytest.raises(ModelMemoryError, match=r"need 0\.0\d GiB.*raise GENARM_MODEL_MEMORY_BYTES"):
        engine.load(GenerationSpec.parse(spec_of(base, ("arm", arm, 1.0))))
    run(engine, spec_of(base))


def test_adapters_are_dropped_one_by_one_while_their_base_stays(
    tmp_path: Path, make_engine: Any, budget_of: Any, caplog: pytest.LogCaptureFixture
) -> None:
    base = make_model(tmp_path / "base")
    adapters = [make_adapter(tmp_path / f"adapter{index}", base, seed=index) for index in range(3)]
    specs = [spec_of(base, ("arm", adapter, 1.0), temperature=1.0) for adapter in adapters]
    expected = [run(make_engine(kv_cache_bytes=CACHE), spec) for spec in specs]
    size = stored_bytes(adapters[0], torch.float32)
    engine = make_engine(kv_cache_bytes=CACHE, model_memory_bytes=budget_of(base) + 2 * size)
    backbone = weakref.ref(engine.load(GenerationSpec.parse(spec_of(base))).base.backbone)
    with caplog.at_level("INFO", "models.zoo"):
        for _ in range(2):
            assert [run(engine, spec) for spec in specs] == expected
    dropped = [record.getMessage() for record in caplog.records if record.getMessage().startswith("dropped")]
    assert set(dropped) == {f"dropped {adapter} from memory for other models" for adapter in adapters}
    assert len(dropped) == engine.stats().model_evictions
    assert engine.stats().model_evictions >= 3
    assert backbone() is engine._zoo.backbones[0]
    riding = updates_on(backbone())
    assert riding
    assert all(len(updates) == 2 for updates in riding)


def updates_on(backbone: Backbone) -> list[dict[str, Any]]:
    """What rides on each layer that an adapter ever rode on."""
    return [module.updates for module in backbone.model.modules() if hasattr(module, "updates")]


def test_an_adapter_that_cannot_be_attached_leaves_nothing_behind(
    tmp_path: Path, make_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_model(tmp_path / "base")
    engine = make_engine(kv_cache_bytes=CACHE)
    backbone = engine.load(GenerationSpec.parse(spec_of(base))).base.backbone

    def load(targets: list[str]) -> None:
        adapter = make_adapter(tmp_path / "adapter", base, targets=targets)
        engine.load(GenerationSpec.parse(spec_of(base, ("arm", adapter, 1.0))))

    with pytest.raises(UnsupportedModelError, match=r"lm_head.* no matrix of plain LoRA"):
        load(["q_proj", "lm_head"])
    assert updates_on(backbone) == []

    added: list[Any] = []
    for kind in (AdaptedLinear, AdaptedPackedLinear):

        def add_or_fail(module: Any, *arguments: Any, add: Any = kind.add) -> None:
            added.append(module)
            if len(added) > 2:
                raise MemoryError
            add(module, *arguments)

        monkeypatch.setattr(kind, "add", add_or_fail)
    with pytest.raises(ModelsError, match="MemoryError"):
        load(["q_proj"])
    assert updates_on(backbone) == [{}, {}, {}]


def test_an_adapter_that_changed_while_it_was_out_of_memory_shares_no_old_blocks(
    tmp_path: Path, make_engine: Any
) -> None:
    """The KV cache outlives an adapter; what a former one left there must not be found again."""
    base = make_model(tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", base, seed=1)
    row = [{"prompt": "a long prompt that fills some blocks of the cache " * 3}]
    spec = spec_of(base, ("arm", adapter, 1.0), temperature=1.0)
    engine = make_engine(kv_cache_bytes=CACHE)
    before = run(engine, spec, row)
    shelf = engine._zoo._shelf
    backbone = [one for one in shelf._residents._held.values() if one.on is None]
    engine._zoo._drop(shelf._residents.evict(keep=backbone))
    make_adapter(adapter, base, seed=2)
    after = run(engine, spec, row)
    assert after == run(make_engine(kv_cache_bytes=CACHE), spec, row)
    assert after != before


def test_memory_of_a_gpu_is_freed_between_steps(make_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    free: list[bool] = []

    def look() -> None:
        lock = engine._running_lock
        other = threading.Thread(target=lambda: free.append(lock.acquire(blocking=False)), daemon=True)
        other.start()
        other.join()

    monkeypatch.setattr(torch.cuda, "empty_cache", look)
    engine._zoo._drop([])
    look()
    assert free == [False, True]


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def make_large(folder: Path) -> Path:
    """About 100 MB."""
    make_model(folder)
    config = AutoModelForCausalLM.from_pretrained(folder).config
    config.intermediate_size = 90_000
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def test_memory_does_not_grow_with_the_models_that_come_and_go(
    tmp_path: Path, make_engine: Any, budget_of: Any
) -> None:
    folders = [make_large(tmp_path / name) for name in ("first", "second")]
    size = stored_bytes(folders[0], torch.float32)
    engine = make_engine(kv_cache_bytes=CACHE, model_memory_bytes=budget_of(folders[0]))
    peaks = []
    for folder in folders * 3:
        run(engine, spec_of(folder, max_new_tokens=2))
        peaks.append(resident_bytes())
    assert max(peaks[1:]) < peaks[0] + size / 2, [f"{peak / 2**20:.0f} MiB" for peak in peaks]


def test_the_sizes_that_are_told_in_advance_are_those_of_the_loaded_models(
    tmp_path: Path, make_engine: Any, budget_of: Any
) -> None:
    folder = make_model(tmp_path / "base")
    guided = make_engine(kv_cache_bytes=CACHE).load(GenerationSpec.parse(spec_of(folder)))
    found = model_bytes(guided.base.backbone.model)
    assert found == pytest.approx(stored_bytes(folder, torch.float32), rel=0.2)
    assert stored_bytes(folder, torch.bfloat16) * 2 == stored_bytes(folder, torch.float32)


@pytest.mark.parametrize("header", [b"", b"\xff" * 8, b"\x02" + b"\0" * 7 + b"[]", b"\x05" + b"\0" * 7 + b'{"a":'])
def test_a_broken_file_has_no_size(tmp_path: Path, header: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(header)
    assert stored_bytes(tmp_path, torch.float32) == 0
