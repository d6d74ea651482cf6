"""What runs models on this CPU: the rule, that it is measured once and kept, the settings above it, what is said."""

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from models.engine import Engine, EngineSettings
from models.errors import SpecError
from models.native import build, choice
from models.native.choice import (
    PREFERENCES,
    Speeds,
    auto_dtype,
    chosen_kernels,
    has_bfloat16,
    kept_speeds,
    measured_speeds,
    speeds,
)
from models.native.speeds import measure_speeds
from models.spec import GenerationSpec
from models.zoo import Placement
from tests.tiny_models import make_model, spec_of
from worker.announcing import telling

FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
NAMES = ("native float32", "native bfloat16", "torch float32", "torch bfloat16")
OURS = dict(zip(NAMES, (20.0, 21.0, 20.0, 1.0), strict=True))
PYTORCHS = dict(zip(NAMES, (10.0, 11.0, 20.0, 1.0), strict=True))


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A CPU without bfloat16, of which nothing is kept yet; the compiled kernels stay where they are."""
    (tmp_path / "kept").mkdir()
    monkeypatch.setattr(choice, "folder", lambda: tmp_path / "kept")
    monkeypatch.setattr(choice, "has_bfloat16", lambda: False)
    speeds.cache_clear()
    yield
    speeds.cache_clear()


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let a measurement find these speeds."""

    def measure(found: dict[str, float]) -> None:
        monkeypatch.setattr(choice, "measure_speeds", lambda: dict(found))
        speeds.cache_clear()  # as in the next process

    return measure


@pytest.mark.parametrize(
    ("gflops", "dtype", "in_float32", "in_bfloat16"),
    [
        ((20, 20, 20, 20), FLOAT32, True, True),
        ((20, 23, 24, 1), FLOAT32, True, True),  # nothing is clearly faster
        ((20, 25, 20, 1), BFLOAT16, True, True),
        ((20, 25, 31, 1), FLOAT32, False, True),
        ((20, 30, 31, 1), BFLOAT16, False, True),
        ((16, 16, 113, 0.5), FLOAT32, False, True),
        ((16, 16, 20, 200), BFLOAT16, False, False),
    ],
)
def test_what_rounds_less_and_our_kernels_go_first_unless_clearly_slower(
    gflops: tuple[float, ...], dtype: torch.dtype, in_float32: bool, in_bfloat16: bool
) -> None:
    found = Speeds(dict(zip(NAMES, gflops, strict=True)))
    assert found.dtype == dtype
    kernels = [found.prefer_kernels(one) for one in (FLOAT32, BFLOAT16)]
    assert kernels == [in_float32, in_bfloat16]


def test_a_cpu_with_bfloat16_uses_it_with_our_kernels(monkeypatch: pytest.MonkeyPatch, measure: Any) -> None:
    monkeypatch.setattr(choice, "has_bfloat16", lambda: True)
    measure(dict(zip(NAMES, (20.0, 30.0, 90.0, 300.0), strict=True)))
    assert [auto_dtype(how) for how in (None, True, False)] == [BFLOAT16] * 3
    assert chosen_kernels(BFLOAT16, None) is not None
    assert chosen_kernels(FLOAT32, None) is None


def test_speeds_are_measured_once_and_kept(measure: Any) -> None:
    measure(OURS)
    assert speeds().gflops == OURS
    measure(PYTORCHS)  # a busy machine
    assert speeds().gflops == OURS == kept_speeds().gflops  # type: ignore[union-attr]
    assert chosen_kernels(FLOAT32, None) is not None
    assert measured_speeds(anew=True).gflops == PYTORCHS
    measure(OURS)
    assert speeds().gflops == PYTORCHS
    assert chosen_kernels(FLOAT32, None) is None


def test_other_versions_and_kernels_are_measured_apart(measure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    measure(OURS)
    speeds()
    for changed in ((torch, "__version__", "0"), (build, "FLAGS", (*build.FLAGS, "-DX"))):
        with monkeypatch.context() as other:
            other.setattr(*changed)
            assert kept_speeds() is None
    assert kept_speeds() is not None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"gflops": {}}', '{"gflops": {"native float32": "fast"}}', "null"])
def test_a_file_that_is_broken_is_measured_anew(measure: Any, text: str) -> None:
    measure(OURS)
    speeds()
    (path,) = choice.folder().glob("speeds-*.json")
    path.write_text(text)
    measure(PYTORCHS)
    assert speeds().gflops == PYTORCHS
    assert kept_speeds() == Speeds(PYTORCHS)


def test_kernels_that_do_not_compile_are_looked_for_again(measure: Any) -> None:
    measure({name: OURS[name] for name in NAMES if name.startswith("torch")})
    assert auto_dtype(None) == FLOAT32
    assert chosen_kernels(FLOAT32, None) is None
    assert kept_speeds() is None


def test_the_settings_go_before_what_was_measured(measure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    measure(PYTORCHS)
    assert chosen_kernels(FLOAT32, True) is not None
    assert chosen_kernels(torch.float16, True) is None
    measure(dict(zip(NAMES, (20.0, 30.0, 60.0, 1.0), strict=True)))
    assert (auto_dtype(None), auto_dtype(True)) == (FLOAT32, BFLOAT16)
    monkeypatch.setattr(choice, "speeds", lambda: pytest.fail("needs no measurement"))
    assert chosen_kernels(FLOAT32, False) is None
    assert auto_dtype(False) == FLOAT32
    assert Placement.choose("cpu", "auto").dtype == FLOAT32  # training, which PyTorch runs


def test_an_engine_runs_models_as_was_measured(measure: Any, tmp_path: Path) -> None:
    spec = GenerationSpec.parse({**spec_of(make_model(tmp_path / "base")), "dtype": "float32"})

    def kernels(**settings: Any) -> Any:
        engine = Engine(EngineSettings(home=tmp_path, device="cpu", kv_cache_bytes=2**20, **settings))
        return engine.load(spec).base.backbone.kernels

    measure(PYTORCHS)
    assert kernels() is None
    assert kernels(use_kernels=True) is not None
    measured_speeds(anew=True)
    measure(OURS)
    measured_speeds(anew=True)
    assert kernels() is not None
    assert kernels(use_kernels=False) is None


def test_without_a_compiler_nothing_is_measured_and_kernels_cannot_be_demanded(
    measure: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    monkeypatch.setattr(choice, "measure_speeds", lambda: pytest.fail("there is nothing to compare"))
    build.library.cache_clear()
    choice.kernels_for.cache_clear()
    try:
        assert auto_dtype(None) == FLOAT32
        assert chosen_kernels(FLOAT32, None) is None
        assert "apt-get install gcc" in caplog.text and "GENARM_KERNELS=torch" in caplog.text
        with pytest.raises(SpecError, match="GENARM_KERNELS=native"):
            chosen_kernels(FLOAT32, True)
        assert "apt-get install gcc" in choice.state()
    finally:
        build.library.cache_clear()
        choice.kernels_for.cache_clear()


def test_a_real_measurement_finds_all_four_and_leaves_the_threads_alone() -> None:
    threads = torch.get_num_threads()
    found = measure_speeds()
    assert set(found) == set(PREFERENCES) == set(NAMES)
    assert all(speed > 0.01 for speed in found.values())
    assert torch.get_num_threads() == threads


def test_compiling_is_told_once_and_processes_take_turns(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: Any
) -> None:
    monkeypatch.setattr(build, "folder", lambda: tmp_path)
    monkeypatch.setattr(build, "FLAGS", ("-O0", *build.FLAGS[1:]))
    found, told = build.find_build(None), []
    assert found is not None
    assert "not compiled yet" in choice.state()
    threads = [threading.Thread(target=build.compile_missing, args=([found],), daemon=True) for _ in range(3)]
    with telling(told.append):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(200)
    assert found.is_compiled
    told = [line for line in told if not line.startswith("waiting for another process")]
    assert told[0] == f"compiling the CPU kernels for {build.instruction_set()}, once for this machine (about 20 s)"
    assert told[1].startswith("compiled the CPU kernels in ")
    assert len(told) == 2
    assert logging.getLogger("models.native").level == logging.NOTSET


@pytest.mark.parametrize(("held", "has_it"), [("native", True), ("avx2", False), ("sse", False)])
def test_bfloat16_is_not_used_where_pytorch_is_held_to_less(
    monkeypatch: pytest.MonkeyPatch, held: str, has_it: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(choice, "held_to", lambda: held)
    assert has_bfloat16() is has_it


def test_the_instruction_set_is_named_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    named = {"x86_64 AVX512": "AVX-512", "x86_64 AVX2": "AVX2", "x86_64 DEFAULT": "SSE", "aarch64 DEFAULT": "NEON"}
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    for what, name in named.items():
        machine, capability = what.split()
        monkeypatch.setattr(build.platform, "machine", lambda machine=machine: machine)
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability)
        assert build.instruction_set() == name
