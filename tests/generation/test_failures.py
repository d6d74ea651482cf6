"""A step that fails costs as little as it can: too little memory shrinks the batch, and the engine always goes on."""

import errno
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest
import torch

from models.backbone import Backbone
from models.errors import DeviceLostError, ModelMemoryError, RowError
from models.failures import is_lost, is_out_of_memory
from models.sequence import Chunk
from models.spec import GenerationSpec, PromptRow
from tests.tiny_models import make_adapter, make_model, spec_of

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


def accelerator_error(message: str, code: int) -> Exception:
    """As PyTorch makes it, with the number of CUDA's error."""
    error = torch.AcceleratorError(message)
    error.error_code = code  # type: ignore[attr-defined]
    return error


CUDA_HINT = "\nCUDA kernel errors might be asynchronously reported at some other API call.\n"
SHORT_OF_MEMORY = [
    MemoryError(),
    MemoryError("Unable to allocate 1.00 GiB for an array"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.1 GiB"),
    torch.OutOfMemoryError("HIP out of memory. Tried to allocate 2.00 GiB."),
    torch.AcceleratorError("CUDA error: out of memory" + CUDA_HINT),
    accelerator_error("CUDA error: cudaErrorMemoryAllocation" + CUDA_HINT, 2),
    accelerator_error("CUDA error: no message", 2),
    RuntimeError("CUDA error: out of memory" + CUDA_HINT),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("CUDA error: CUSPARSE_STATUS_ALLOC_FAILED when calling `cusparseCreate(handle)`"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
]
NOT_SHORT_OF_MEMORY = [
    accelerator_error("CUDA error: device-side assert triggered" + CUDA_HINT, 710),
    accelerator_error("CUDA error: an illegal memory access was encountered" + CUDA_HINT, 700),
    accelerator_error("CUDA error: operation not permitted when stream is capturing" + CUDA_HINT, 900),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasGemmEx`"),
    RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
    ValueError("the story is out of memory"),
    OSError(errno.ENOENT, "No such file"),
    KeyError("out of memory"),
]


def id_of(error: Exception) -> str:
    return f"{type(error).__name__} {str(error)[:50]}"


@pytest.mark.parametrize("error", SHORT_OF_MEMORY, ids=id_of)
def test_every_form_of_out_of_memory_is_one(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", NOT_SHORT_OF_MEMORY, ids=id_of)
def test_other_errors_are_not_out_of_memory(error: Exception) -> None:
    assert not is_out_of_memory(error)


def test_what_the_allocator_of_this_machine_raises_is_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as failure:
        torch.empty(2**60, dtype=torch.int8)
    assert is_out_of_memory(failure.value)


@pytest.mark.parametrize("error", SHORT_OF_MEMORY[::3], ids=id_of)
def test_models_for_which_there_is_no_memory_say_so(
    make_engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Backbones and adapters; a device that is lost may give such errors too."""
    base = make_model(tmp_path / "base")
    spec = GenerationSpec.parse(spec_of(base, ("own", make_adapter(tmp_path / "own", base), 1.0)))

    def fail(*args: Any, **options: Any) -> None:
        raise error

    for step in ("load_weights", "Backbone.attach"):
        with monkeypatch.context() as patch:
            patch.setattr(f"models.zoo.{step}", fail)
            with pytest.raises(ModelMemoryError, match=r"base and its ARMs: there is no memory .* GENARM_MODEL_MEMORY"):
                make_engine().load(spec)
            patch.setattr("models.zoo.is_lost", lambda device: True)
            with pytest.raises(DeviceLostError):
                make_engine().load(spec)


@pytest.mark.parametrize("error", SHORT_OF_MEMORY, ids=id_of)
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


def test_a_row_whose_tokens_give_no_text_fails_alone(
    make_engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = GenerationSpec.parse(spec_of(make_model(tmp_path / "base"), samples=2, temperature=1.0, ignore_eos=True))
    engine = make_engine()
    guided = engine.load(spec)
    decode = guided.base.renderer.text

    def text(tokens: list[int]) -> str:
        if len(tokens) == 7:
            raise ValueError("no text")
        return decode(tokens)

    monkeypatch.setattr(guided.base.renderer, "text", text)
    rows = [{**ROWS[0], "sampling": {"max_new_tokens": count}} for count in (6, 7, 8)]
    futures = [engine.submit(guided, PromptRow.parse(row, index, spec)) for index, row in enumerate(rows)]
    while engine.step():
        pass
    with pytest.raises(ValueError, match="no text"):
        futures[1].result(timeout=0)
    assert [len(completion.tokens) for index in (0, 2) for completion in futures[index].result(0)] == [6, 6, 8, 8]


@pytest.fixture
def started(make_engine: Any, tmp_path: Path) -> Any:
    """Start an engine; gives it, and a function that submits a row which takes long."""
    spec = GenerationSpec.parse(spec_of(make_model(tmp_path / "base"), max_new_tokens=200, ignore_eos=True))
    engine = make_engine()
    guided = engine.load(spec)
    yield engine, lambda: engine.submit(guided, PromptRow.parse(ROWS[0], 0, spec))
    engine.stop()


def test_an_engine_whose_thread_breaks_gives_all_rows_back(started: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, submit = started
    monkeypatch.setattr(engine._scheduler, "schedule", lambda: {}["a bug"])
    before = submit()
    engine.start()
    with pytest.raises(CancelledError):
        before.result(timeout=10)
    engine._thread.join(10)
    assert not engine._thread.is_alive()
    assert submit().cancelled()


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    ],
    ids=id_of,
)
def test_a_lost_device_ends_the_engine_and_blames_no_row(
    started: Any, failing_runs: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    engine, submit = started
    monkeypatch.setattr("models.engine.is_lost", lambda device: True)
    futures = [submit() for _ in range(3)]
    sizes = failing_runs(lambda chunks: len(sizes) == 3, error)
    engine.start()
    for future in futures:
        with pytest.raises(CancelledError):
            future.result(timeout=10)
    assert submit().cancelled()
    assert len(sizes) == 3


def test_a_device_is_lost_where_even_waiting_for_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    synchronized: list[Any] = []
    monkeypatch.setattr(torch.cuda, "synchronize", synchronized.append)
    assert not is_lost(torch.device("cpu"))
    assert not is_lost(torch.device("cuda:1"))
    assert synchronized == [torch.device("cuda:1")]

    def fail(device: torch.device) -> None:
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    def be_short(device: torch.device) -> None:
        raise torch.AcceleratorError("CUDA error: out of memory")

    monkeypatch.setattr(torch.cuda, "synchronize", be_short)
    assert not is_lost(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "synchronize", fail)
    assert is_lost(torch.device("cuda"))
    assert not is_lost(torch.device("cpu"))
