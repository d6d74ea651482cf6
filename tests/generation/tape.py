"""A CUDA graph's stand-in on the CPU: records the operations of a step once, and replays these and nothing else."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

WAITS_FOR_THE_DEVICE = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.equal.default,
}


class Tape(TorchDispatchMode):
    """What a step did when it was recorded; whatever it read from Python then is fixed, as in a CUDA graph."""

    def __init__(self, step: Callable[[], torch.Tensor]) -> None:
        super().__init__()
        self._operations: list[tuple[Any, Any, Any, Any]] = []
        self.replays = 0
        with self, torch.inference_mode():
            self._result = step()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert function not in WAITS_FOR_THE_DEVICE, f"{function} cannot be in a CUDA graph"
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        self._operations.append((function, args, kwargs, result))
        return result

    def __call__(self) -> torch.Tensor:
        self.replays += 1
        now: dict[int, Any] = {}

        def current(value: Any) -> Any:
            return now.get(id(value), value)

        with torch.inference_mode():
            for function, args, kwargs, before in self._operations:
                after = function(*tree_map(current, args), **tree_map(current, kwargs))
                now |= {id(old): new for old, new in zip(tree_flatten(before)[0], tree_flatten(after)[0], strict=True)}
        result: torch.Tensor = current(self._result)
        return result
