"""How much memory models get where nothing is set."""

from pathlib import Path

import pytest
import torch

from models import memory

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
GIB = 2**30


def test_a_container_has_what_its_limit_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "CGROUP_LIMITS", (tmp_path / "missing", limit))
    whole = memory.default_budget(CPU)
    limit.write_text("max\n")
    assert memory.default_budget(CPU) == whole
    limit.write_text(f"{10**8}\n")
    assert memory.default_budget(CPU) == 8 * 10**7
    limit.write_text(f"{2**62}\n")  # how cgroup v1 says that there is none
    assert memory.default_budget(CPU) == whole


def test_models_share_what_their_weights_leave() -> None:
    assert memory.cache_bytes(CUDA, budget=64 * GIB, left=30 * GIB, models=2) == 10 * GIB
    assert memory.cache_bytes(CUDA, budget=64 * GIB, left=20 * GIB, models=1) == 10 * GIB
    assert memory.cache_bytes(CPU, budget=64 * GIB, left=30 * GIB, models=2) == 2 * GIB
    assert memory.cache_bytes(CPU, budget=8 * GIB, left=2 * GIB, models=3) == GIB // 2


def test_a_cache_is_never_smaller_than_what_was_made_room_for() -> None:
    least = int(64 * GIB * memory.LEAST_CACHE_SHARE)
    assert memory.cache_bytes(CUDA, budget=64 * GIB, left=least, models=1) == least
