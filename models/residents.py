"""Which models stay in memory: sizes, users and the order of eviction, within a budget; knows no tensors."""

from collections import OrderedDict
from collections.abc import Collection, Hashable, Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(eq=False)
class Resident:
    """Something in memory: a backbone with its KV cache, or an adapter that rides on one."""

    key: Hashable
    item: Any
    """None once it was evicted, so that nobody who still knows the resident holds its memory."""
    size: int
    """Bytes."""
    on: "Resident | None" = None
    """What it rides on, and is evicted with."""
    users: int = 0


class Residents:
    """Accounting of what is in memory, the least recently used first.

    Args:
        budget: bytes that all of it may take.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.evictions = 0
        self._held: OrderedDict[Hashable, Resident] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    @property
    def items(self) -> list[Any]:
        """What is held."""
        return [resident.item for resident in self._held.values()]

    @property
    def size(self) -> int:
        """Bytes that are taken."""
        return sum(resident.size for resident in self._held.values())

    @property
    def left(self) -> int:
        """Bytes that are not; below zero where something turned out larger than was thought."""
        return self.budget - self.size

    def find(self, keys: Iterable[Hashable]) -> list[Resident]:
        """Those of the keys that are held."""
        return [self._held[key] for key in keys if key in self._held]

    def add(self, key: Hashable, item: Any, size: int, on: Resident | None = None) -> Resident:
        """Hold something that was not held yet; nobody uses it."""
        resident = self._held[key] = Resident(key, item, size, on)
        return resident

    def use(self, residents: Collection[Resident]) -> bool:
        """Count one more user of each; False, and nobody counted, where one of them was evicted."""
        if any(resident.item is None for resident in residents):
            return False
        for resident in residents:
            resident.users += 1
            self._held.move_to_end(resident.key)
        return True

    def leave(self, residents: Iterable[Resident]) -> None:
        """Count one user less of each."""
        for resident in residents:
            resident.users -= 1

    def evict(self, keep: Collection[Resident]) -> list[Any]:
        """Let go of the least recently used that has no user and is none of `keep`, with all that rides on it.

        Returns:
            What was let go of; empty where all is in use or kept.
        """
        for resident in self._held.values():
            if not resident.users and resident not in keep:
                gone = [resident, *(rider for rider in self._held.values() if rider.on is resident)]
                return [self._drop(one) for one in gone]
        return []

    def _drop(self, resident: Resident) -> Any:
        del self._held[resident.key]
        item, resident.item = resident.item, None
        self.evictions += 1
        return item
