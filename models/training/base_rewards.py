"""The log-probabilities of the base that the fused objective needs: computed once per base and pairs, kept on disk."""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from models.rights import give_usual_rights
from models.training.encoding import EncodedPair, collate
from models.training.objective import sequence_rewards


def digest_of(pairs: Sequence[EncodedPair]) -> str:
    """A digest of pairs as the model sees them: token ids, and where the responses begin."""
    digest = hashlib.sha256()
    for pair in pairs:
        for response in (pair.chosen, pair.rejected):
            digest.update(f"{len(response.ids)} {response.response_start} ".encode())
            digest.update(response.ids.tobytes())
    return digest.hexdigest()


def cache_path(home: Path, base: str, dtype: str, pairs: Sequence[EncodedPair]) -> Path:
    """Where the log-probabilities of a base over pairs are kept.

    Args:
        base: fingerprint of the base's weights.
        dtype: that they are computed in.
    """
    digest = hashlib.sha256(f"{base} {dtype} {digest_of(pairs)}".encode()).hexdigest()
    return home / "logprobs" / f"{digest[:32]}.safetensors"


def with_base_rewards(
    pairs: Sequence[EncodedPair], path: Path, compute: Callable[[], torch.Tensor]
) -> list[EncodedPair]:
    """The pairs with Σ log π_base of their responses, from the file where it is there, else computed and kept there.

    Args:
        compute: float32 [pairs, 2], chosen and rejected; called by every process or by none.
    """
    rewards = _read(path, len(pairs))
    if rewards is None:
        rewards = compute()
        if PartialState().is_main_process:
            _write(path, rewards)
    return [
        replace(pair, base_rewards=(chosen, rejected))
        for pair, (chosen, rejected) in zip(pairs, rewards.tolist(), strict=True)
    ]


def _read(path: Path, count: int) -> torch.Tensor | None:
    state = PartialState()
    state.wait_for_everyone()  # nobody may read what another is about to find missing
    try:
        rewards = load_file(path)["rewards"]
    except (OSError, SafetensorError, KeyError):
        rewards = torch.empty(0, 2)
    state.wait_for_everyone()
    return rewards if rewards.shape == (count, 2) else None


def _write(path: Path, rewards: torch.Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    save_file({"rewards": rewards.contiguous()}, partial)
    give_usual_rights([partial])
    partial.replace(path)


def compute_rewards(
    model: Any,
    pairs: Sequence[EncodedPair],
    *,
    vocabulary_size: int,
    pad_id: int,
    pairs_per_pass: int,
    on_count: Callable[[int], None],
) -> torch.Tensor:
    """Rewards of all pairs by a model, shared out among the processes.

    Args:
        model: on the device where it runs; evaluated as it is.
        on_count: called with the number of pairs that this process has done.

    Returns:
        float32 [pairs, 2], chosen and rejected.
    """
    state = PartialState()
    device = next(model.parameters()).device
    order = sorted(range(len(pairs)), key=lambda index: pairs[index].tokens)
    mine = order[state.process_index :: state.num_processes]
    found: list[tuple[int, list[float]]] = []
    model.eval()
    with torch.no_grad():
        for start in range(0, len(mine), pairs_per_pass):
            indexes = mine[start : start + pairs_per_pass]
            batch = collate([pairs[index] for index in indexes], pad_id)
            batch.pop("base_rewards")
            moved = {name: tensor.to(device) for name, tensor in batch.items()}
            rewards = sequence_rewards(model, **moved, vocabulary_size=vocabulary_size).view(2, -1).T.cpu()
            found += zip(indexes, rewards.tolist(), strict=True)
            on_count(len(found))
    if state.num_processes > 1:
        found = gather_object(found)
    return torch.tensor([values for _, values in sorted(found)])
