"""A CUDA graph's stand-in on the CPU: records the operations of a step once, and replays these and nothing else.

It keeps alive what a graph keeps, and no more: what the step made while it was recorded. All else that the step read is
known by its place in memory alone, so that a replay fails where nobody keeps that memory; on CUDA it would read what
others have written there since. As of a graph, the result of all replays is one tensor.
"""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

WAITS_FOR_THE_DEVICE = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.item.default,
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.equal.default,
}


@dataclass(frozen=True)
class Made:
    """A tensor that the step makes."""

    number: int

    def tensor(self, function: Any, made: dict[int | None, Any]) -> torch.Tensor:
        tensor: torch.Tensor = made[self.number]
        return tensor


class Outside:
    """A tensor that was there before; only whoever owns it keeps its memory."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._memory = StorageWeakRef(tensor.untyped_storage())
        self._like = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        self._place = (tensor.storage_offset(), tensor.size(), tensor.stride())

    def tensor(self, function: Any, made: dict[int | None, Any]) -> torch.Tensor:
        memory = torch.UntypedStorage._new_with_weak_ptr(self._memory.cdata)
        assert memory is not None, f"{function} reads memory of {self._place[1]} that nobody keeps since the capture"
        return self._like.new_empty(0).set_(memory, *self._place)


class Tape(TorchDispatchMode):
    """What a step did when it was recorded; whatever it read from Python then is fixed, as in a CUDA graph."""

    def __init__(self, step: Callable[[], torch.Tensor]) -> None:
        super().__init__()
        self._operations: list[tuple[Any, Any, list[Any], list[int | None]]] = []
        """Of each: what was called, its arguments' structure, the arguments, and the numbers of its results."""
        self._made: list[torch.Tensor] = []
        self._numbers: dict[int, int] = {}
        self.replays = 0
        with patch("torch.cuda.is_current_stream_capturing", return_value=True), self, torch.inference_mode():
            self._result = step()
        self._number = self._numbers[id(self._result)]
        self._made, self._numbers = [], {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert function not in WAITS_FOR_THE_DEVICE, f"{function} cannot be in a CUDA graph"
        flat, structure = tree_flatten((args, kwargs or {}))
        flat = [self._recorded(value) for value in flat]
        result = function(*args, **(kwargs or {}))
        self._operations.append((function, structure, flat, [self._note(one) for one in tree_flatten(result)[0]]))
        return result

    def _recorded(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        number = self._numbers.get(id(value))
        return Outside(value) if number is None else Made(number)

    def _note(self, value: Any) -> int | None:
        """The number of a tensor that was made; a change in place gives a tensor that is known already."""
        if not isinstance(value, torch.Tensor):
            return None
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self._made)
            self._made.append(value)  # until all is recorded, so that no other tensor gets its id
        return self._numbers[id(value)]

    def __call__(self) -> torch.Tensor:
        if not self.replays:
            gc.collect()  # cycles keep nothing alive for long
        self.replays += 1
        made: dict[int | None, Any] = {}
        with torch.inference_mode():
            for function, structure, flat, numbers in self._operations:
                now = [value.tensor(function, made) if isinstance(value, Made | Outside) else value for value in flat]
                args, kwargs = tree_unflatten(now, structure)
                made |= zip(numbers, tree_flatten(function(*args, **kwargs))[0], strict=True)
            return self._result.copy_(made[self._number])
