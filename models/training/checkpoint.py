"""Checkpoints of a training: whole or not there, safetensors and JSON alone, and enough to go on bit for bit.

    OUTPUT/checkpoint/step-40/        weights, optimizer, rng (.safetensors), checkpoint.json, trainer_state.json
    OUTPUT/checkpoint/best-30.safetensors     the best weights so far, where the training looks for them

A checkpoint is written beside its place and renamed; only then is the one before it deleted.
"""

import json
import os
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.errors import ModelsError, first_line
from models.rights import give_usual_rights

FOLDER = "checkpoint"
FACTS = "checkpoint.json"
TRAINER_STATE = "trainer_state.json"


class CheckpointError(ModelsError):
    """A checkpoint cannot be used: it is broken, of another training, or in the way of a new one."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk."""

    folder: Path
    facts: Mapping[str, Any]
    """What checkpoint.json holds: `identity` of the training, `schedule`, `optimizer` groups, and the `record`."""

    @property
    def step(self) -> int:
        """Optimiser steps that were done."""
        return int(self.folder.name.removeprefix("step-"))

    def tensors(self, name: str) -> dict[str, Tensor]:
        """One of its files of tensors.

        Raises:
            CheckpointError: the file is missing or broken.
        """
        return _tensors(self.folder / f"{name}.safetensors")


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({first_line(error)})") from None
    return tensors


def newest(output: Path) -> Checkpoint | None:
    """The checkpoint of an output folder, if there is one.

    Raises:
        CheckpointError: it is broken.
    """
    steps = [(int(path.name.removeprefix("step-")), path) for path in (output / FOLDER).glob("step-*")]
    if not steps:
        return None
    folder = max(steps)[1]
    try:
        return Checkpoint(folder, json.loads((folder / FACTS).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: {FACTS} cannot be read ({error}); delete the folder") from None


def write(
    output: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], files: Mapping[str, Any], best_step: int
) -> None:
    """Write a checkpoint, and delete those before it.

    Args:
        output: folder of the training.
        step: optimiser steps that were done; a checkpoint of the same step stays as it is.
        tensors: by file name without its ending.
        files: JSON values by file name.
        best_step: the step of the best weights that it refers to; those of other steps are deleted.
    """
    parent = output / FOLDER
    folder = parent / f"step-{step}"
    if not folder.is_dir():
        partial = parent / ".partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name, some in tensors.items():
            save_file(dict(some), partial / f"{name}.safetensors")
        give_usual_rights(partial.glob("*.safetensors"))
        for name, value in files.items():
            (partial / name).write_text(json.dumps(value), encoding="utf-8")
        for path in (*partial.iterdir(), partial):
            _sync(path)
        partial.rename(folder)
        _sync(parent)
    for path in parent.iterdir():
        if path.is_dir() and path != folder:
            shutil.rmtree(path)
        elif path.name.startswith("best-") and path != best_path(output, best_step):
            path.unlink()


def best_path(output: Path, step: int) -> Path:
    """Where the weights of a step are kept as the best."""
    return output / FOLDER / f"best-{step}.safetensors"


def write_best(output: Path, step: int, weights: Mapping[str, Tensor]) -> None:
    """Keep weights as the best; those before stay until a checkpoint refers to these."""
    path = best_path(output, step)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(dict(weights), partial)
    give_usual_rights([partial])
    _sync(partial)
    partial.rename(path)


def best_weights(output: Path, step: int) -> dict[str, Tensor]:
    """The weights that `write_best` kept.

    Raises:
        CheckpointError: the file is missing or broken.
    """
    return _tensors(best_path(output, step))


def remove(output: Path) -> None:
    """Delete what a finished training needs no more."""
    shutil.rmtree(output / FOLDER, ignore_errors=True)


def _sync(path: Path) -> None:
    """After a crash of the machine the name must not stand for half a file."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def trainable(model: torch.nn.Module) -> dict[str, Tensor]:
    """The weights that are trained, by name, on the CPU."""
    return {
        name: weight.detach().cpu().contiguous() for name, weight in model.named_parameters() if weight.requires_grad
    }


def restore(model: torch.nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give a model weights that `trainable` took.

    Raises:
        CheckpointError: they are those of another model.
    """
    parameters = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    if parameters.keys() != weights.keys():
        raise CheckpointError("the checkpoint holds the weights of another model; delete it to start over")
    with torch.no_grad():
        for name, weight in parameters.items():
            weight.copy_(weights[name])


def optimizer_tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of an optimiser's state, by "parameter.name"."""
    return {
        f"{parameter}.{name}": value.cpu().contiguous()
        for parameter, values in state["state"].items()
        for name, value in values.items()
    }


def optimizer_state(groups: list[dict[str, Any]], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """An optimiser's state from its parameter groups and `optimizer_tensors`."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        parameter, _, name = key.partition(".")
        state.setdefault(int(parameter), {})[name] = value
    return {"state": state, "param_groups": groups}


def random_state() -> dict[str, Tensor]:
    """The state of every generator of random numbers of this process."""
    version, words, _ = random.getstate()
    numpy_state: Any = np.random.get_state(legacy=True)
    _, keys, position, *_ = numpy_state
    states = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor([version, *words]),
        "numpy": torch.from_numpy(np.append(keys.astype(np.int64), position)),
    }
    return states | {f"cuda{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}


def set_random_state(states: Mapping[str, Tensor]) -> None:
    """Go on with the random numbers where `random_state` left them."""
    version, *words = states["python"].tolist()
    random.setstate((version, tuple(words), None))
    *keys, position = states["numpy"].tolist()
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), position, 0, 0.0))
    torch.set_rng_state(states["torch"])
    for index in range(torch.cuda.device_count()):
        if (state := states.get(f"cuda{index}")) is not None:
            torch.cuda.set_rng_state(state, index)


def require_same(checkpoint: Checkpoint, identity: Mapping[str, Any]) -> None:
    """Check that a checkpoint is of this very training.

    Args:
        identity: what the weights depend on, JSON values by name.

    Raises:
        CheckpointError: it is not; the message says what differs.
    """
    before = checkpoint.facts["identity"]
    names = [name for name in (*identity, *before) if before.get(name) != identity.get(name)]
    differing = [_difference(name, before.get(name), identity.get(name)) for name in dict.fromkeys(names)]
    if differing:
        raise CheckpointError(
            f"{checkpoint.folder}: cannot be resumed, since the training is another one: {'; '.join(differing)}; "
            f"resume it with its own settings, or delete {checkpoint.folder.parent} to start over"
        )


def _difference(name: str, before: Any, now: Any) -> str:
    if name.endswith(" pairs") or name == "base":
        return f"the {name} {'are' if name.endswith('s') else 'is'} not what it began with"
    return f"{name} was {_shown(before)} and is {_shown(now)}"


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def in_the_way(found: Checkpoint) -> CheckpointError:
    """That a new training would destroy the checkpoint of an unfinished one."""
    return CheckpointError(
        f"{found.folder.parent.parent}: holds a training that stopped after step {found.step}; go on with --resume, "
        f"or delete {found.folder.parent} to start over"
    )
