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
    def size(device: torch.device, budget: int, left: int, need: int, others: int, spare: int) -> int:
        return memory.cache_bytes(device, budget * GIB, left * GIB, need, others, spare)

    assert size(CUDA, 64, 30, need=7, others=7, spare=7) == 10 * GIB
    assert size(CUDA, 64, 20, need=7, others=0, spare=7) == 10 * GIB
    assert size(CPU, 64, 30, need=7, others=7, spare=7) == 2 * GIB
    assert size(CPU, 8, 2, need=7, others=14, spare=7) == GIB // 2


@pytest.mark.parametrize("order", [(20, 1), (1, 20)])
def test_caches_of_models_of_different_size_hold_as_many_tokens(order: tuple[int, int]) -> None:
    left, needs, tokens = 63 * GIB, list(order), []
    while needs:
        need = needs.pop(0)
        size = memory.cache_bytes(CUDA, 64 * GIB, left, need, sum(needs), 10)
        tokens.append(size // need)
        left -= size
    assert tokens[0] == pytest.approx(tokens[1], rel=1e-6)
    assert left == pytest.approx(63 * GIB * 10 / 31, rel=1e-6)


def test_a_cache_is_never_smaller_than_what_was_made_room_for() -> None:
    least = int(64 * GIB * memory.LEAST_CACHE_SHARE)
    assert memory.cache_bytes(CUDA, budget=64 * GIB, left=least, need=7, others=0, spare=7) == least
