"""A capture is made on the right device, and one that fails leaves the process as it was; no GPU is needed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from models.devices import running_on
from models.graph_capture import WARM_UPS, capture_for
from models.spec import GenerationSpec, PromptRow
from models.zoo import Placement
from tests.generation.fake_cuda import FakeCuda
from tests.generation.tape import Tape
from tests.tiny_models import make_adapter, make_model, spec_of

ROWS = [{"prompt": f"row {'x' * index}", "sampling": {"max_new_tokens": 10}} for index in range(5)]
ILLEGAL = torch.AcceleratorError("CUDA error: operation not permitted when stream is capturing")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return FakeCuda(monkeypatch)


@pytest.mark.parametrize("index", [None, 0, 1])
def test_a_step_is_captured_and_replayed_on_its_own_device(cuda: FakeCuda, index: int | None) -> None:
    device = torch.device("cuda", index) if index is not None else torch.device("cuda")
    on = index or 0
    seen: list[tuple[int, str]] = []

    def step() -> torch.Tensor:
        seen.append((cuda.device, cuda.stream.name))
        return torch.ones(1)

    capture = capture_for(device)
    first, second = capture(step), capture(step)
    assert seen == [(on, "side")] * 2 * (WARM_UPS + 1)
    assert [device for device, _ in cuda.captures] == [on, on]
    assert len({id(stream) for _, stream in cuda.captures}) == 1, "one pool is used on one stream"
    assert cuda.captures[0][1].waited_for == [cuda.defaults[on]] * 2
    assert cuda.defaults[on].waited_for == [cuda.captures[0][1]] * 2
    assert not cuda.replays
    assert [first().item(), second().item()] == [1, 1]
    assert cuda.replays == [on, on]
    assert (cuda.device, cuda.current, cuda.allocating) == (0, cuda.defaults, [])


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("at", [1, WARM_UPS + 1], ids=["warming up", "capturing"])
@pytest.mark.parametrize("is_broken", [True, False], ids=["cannot be ended", "can be ended"])
def test_a_capture_that_fails_leaves_the_process_as_it_was(
    cuda: FakeCuda, index: int, at: int, is_broken: bool
) -> None:
    calls = []

    def step() -> torch.Tensor:
        calls.append(1)
        if len(calls) == at:
            cuda.is_broken = is_broken and bool(cuda.allocating)
            raise ILLEGAL
        return torch.ones(1)

    with pytest.raises(torch.AcceleratorError, match="not permitted when stream is capturing") as failure:
        capture_for(torch.device("cuda", index))(step)
    assert failure.value is ILLEGAL, "what ended badly does not hide why"
    assert (cuda.device, cuda.current) == (0, cuda.defaults)
    torch.cuda.empty_cache()
    if is_broken:
        assert set(cuda.pools.values()) <= {0}, "a graph that never was holds no pool"
    assert capture_for(torch.device("cuda", index))(lambda: torch.ones(1))().item() == 1


def test_a_capture_whose_end_alone_fails_is_told_so(cuda: FakeCuda) -> None:
    def step() -> torch.Tensor:
        cuda.is_broken = bool(cuda.allocating)
        return torch.ones(1)

    with pytest.raises(torch.AcceleratorError, match="previous error during capture"):
        capture_for(torch.device("cuda", 1))(step)
    assert (cuda.device, cuda.current, cuda.allocating) == (0, cuda.defaults, [])


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[list[int], list[int]]]:
    """Let captures that a test picks fail; the lists have an entry for each attempt and for each new memory pool."""

    def arm(error: Exception, fails: Callable[[int], bool]) -> tuple[list[int], list[int]]:
        attempts, pools = [], []

        def make(device: torch.device) -> Any:
            pools.append(1)

            def capture(step: Any) -> Tape:
                attempts.append(1)
                if fails(len(attempts)):
                    raise error
                return Tape(step)

            return capture

        monkeypatch.setattr("models.backbone.capture_for", make)
        return attempts, pools

    return arm


def tokens_of(found: Any) -> list[list[int]]:
    return [row[0].tokens for row in found]


@pytest.mark.parametrize(
    ("error", "fails", "attempts", "message"),
    [
        (ILLEGAL, lambda attempt: True, 1, "decoding without CUDA graphs"),
        (RuntimeError("CUDA error: unknown"), lambda attempt: True, 3, "decoding without CUDA graphs"),
        (RuntimeError("CUDA error: unknown"), lambda attempt: attempt in (1, 2, 4), None, "this step runs without"),
    ],
    ids=["never legal", "again and again", "for a while"],
)
def test_only_a_model_that_cannot_be_captured_goes_on_without_graphs(
    tmp_path: Path, generate: Any, refusing: Any, caplog: Any, error: Any, fails: Any, attempts: int, message: str
) -> None:
    spec = spec_of(make_model(tmp_path / "base"), temperature=1.0, ignore_eos=True)
    expected = tokens_of(generate(spec, ROWS, use_kernels=False))
    found, pools = refusing(error, fails)
    assert tokens_of(generate(spec, ROWS, use_kernels=False, static_decode=True)) == expected
    assert message in caplog.text
    assert len(found) == attempts if attempts else len(found) > 4
    if attempts is None:
        assert "decoding without" not in caplog.text
        assert len(pools) == 4, "a pool in which a capture failed is not used again"


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUBLAS_STATUS_ALLOC_FAILED")], ids=type
)
def test_too_little_memory_for_a_capture_shrinks_the_batch_and_keeps_graphs(
    tmp_path: Path, generate: Any, refusing: Any, caplog: Any, error: Exception
) -> None:
    spec = spec_of(make_model(tmp_path / "base"), temperature=1.0, ignore_eos=True)
    expected = tokens_of(generate(spec, ROWS, use_kernels=False))
    attempts, pools = refusing(error, lambda attempt: attempt == 1)
    assert tokens_of(generate(spec, ROWS, use_kernels=False, static_decode=True)) == expected
    assert "out of memory with 5 sequences; going on with 2 at once" in caplog.text
    assert "without CUDA graphs" not in caplog.text
    assert len(attempts) > 1
    assert len(pools) == 2


def test_the_steps_of_an_adapter_go_with_it(tmp_path: Path, make_engine: Any, taped: Any) -> None:
    base = make_model(tmp_path / "base")
    spec = GenerationSpec.parse(spec_of(base, ("own", make_adapter(tmp_path / "own", base), 1.0), ignore_eos=True))
    engine = make_engine(use_kernels=False, static_decode=True)
    guided = engine.load(spec)
    engine.submit(guided, PromptRow.parse(ROWS[0], 0, spec))
    while engine.step():
        pass
    backbone, adapter = guided.base.backbone, guided.arms[0].adapter
    assert taped
    assert any(adapter in dict(shape.segments) for shape in backbone._static._steps)
    backbone.detach(adapter)
    assert not any(adapter in dict(shape.segments) for shape in backbone._static._steps)


def test_a_model_runs_on_its_device_without_the_attention_of_cudnn(cuda: FakeCuda) -> None:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        with running_on(torch.device("cuda:1")):
            assert (cuda.device, torch.backends.cuda.cudnn_sdp_enabled()) == (1, False)
        assert (cuda.device, torch.backends.cuda.cudnn_sdp_enabled()) == (0, True)
        with running_on(torch.device("cpu")):
            assert torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def test_every_pass_runs_on_its_device(tmp_path: Path, generate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def note(device: torch.device) -> Any:
        seen.append(device)
        return running_on(device)

    monkeypatch.setattr("models.backbone.running_on", note)
    generate(spec_of(make_model(tmp_path / "base"), max_new_tokens=4, ignore_eos=True), [{"prompt": "p"}])
    assert seen == [torch.device("cpu")] * 4


@pytest.mark.parametrize(("capability", "dtype"), [(7, torch.float32), (8, torch.bfloat16), (9, torch.bfloat16)])
def test_bfloat16_is_chosen_where_the_device_itself_computes_in_it(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, capability: int, dtype: torch.dtype
) -> None:
    """The second GPU's, beside one that is older or newer; a V100 and a T4 emulate it."""

    class Properties:
        def __init__(self, device: int) -> None:
            self.major = capability if device == 1 else 15 - capability

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", Properties)
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: True)
    assert Placement.choose("cuda:1", "auto").dtype == dtype
