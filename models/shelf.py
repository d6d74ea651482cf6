"""What is in memory, shared by threads: who uses it, who loads more, and in what order they have their turns."""

import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from models.errors import ModelMemoryError, ModelsInUseError
from models.residents import Resident, Residents

LOOK_SECONDS = 0.1

GiveUp = Callable[[], bool]


@dataclass(eq=False)
class Turn:
    """One caller's turn to use what its keys name, and to load what of it is missing."""

    keys: Sequence[Hashable]
    give_up: GiveUp | None
    residents: list[Resident] = field(default_factory=list)
    """What the keys name, once the caller counts as a user of it."""
    is_loading: bool = False
    """The caller loads what is missing, and nobody else loads meanwhile."""


class Shelf:
    """What is in memory within a budget; thread-safe.

    One caller loads at a time, in the order of asking. While it waits for memory that others use, nobody becomes a new
    user of anything, so that its turn comes; once it has loaded, all who waited for the same get it with it.

    Args:
        drop: lets go of what was evicted; called without a lock.
    """

    def __init__(self, budget: int, drop: Callable[[list[Any]], None]) -> None:
        self.budget = budget
        self._residents = Residents(budget)
        self._drop = drop
        self._changed = threading.Condition()
        self._turns: deque[Turn] = deque()
        self._is_short = False

    def hold(self, residents: Sequence[Resident]) -> bool:
        """Become a user, until `let_go`; False where some of it was evicted, or others wait for its memory."""
        with self._changed:
            return not self._is_short and self._residents.use(residents)

    def hold_again(self, residents: Sequence[Resident]) -> bool:
        """The same for one who acts for a user, whom nobody may hold up."""
        with self._changed:
            return self._residents.use(residents)

    def let_go(self, residents: Sequence[Resident]) -> None:
        """Be a user no longer."""
        with self._changed:
            self._residents.leave(residents)
            self._changed.notify_all()

    @contextmanager
    def turn(self, keys: Sequence[Hashable], give_up: GiveUp | None) -> Iterator[Turn]:
        """Wait until all that the keys name can be used, or until it is the caller's turn to load what is missing.

        At the end, when all is there, the caller counts as a user.

        Args:
            give_up: asked from time to time while the caller waits for memory; None: it does not wait for that.

        Raises:
            ModelsInUseError: what others use leaves no room, and the caller does not wait for them any longer.
        """
        turn = Turn(keys, give_up)
        with self._changed:
            self._turns.append(turn)
            try:
                if not self._is_short:
                    self._admit()
                self._await(turn)
            except BaseException:
                self._leave_queue(turn)
                raise
        try:
            yield turn
        finally:
            with self._changed:
                if turn.is_loading:
                    turn.is_loading = False
                    self._admit()
                self._leave_queue(turn)

    def _await(self, turn: Turn) -> None:
        while not turn.residents:
            if self._turns[0] is turn:
                turn.is_loading = True
                return
            if self._is_short:
                _require_patience(turn)
            self._changed.wait(LOOK_SECONDS)

    def _admit(self) -> None:
        """Let all have their turn for whom all is there."""
        for turn in self._turns:
            found = self._residents.find(turn.keys)
            if not turn.residents and not turn.is_loading and len(found) == len(turn.keys):
                self._residents.use(found)
                turn.residents = found
        self._changed.notify_all()

    def _leave_queue(self, turn: Turn) -> None:
        self._turns.remove(turn)
        self._changed.notify_all()

    def make_room(self, turn: Turn, wanted: int, least: int) -> None:
        """Evict what nobody uses until there are `wanted` bytes, or at least `least`; waits for users where need be.

        Raises:
            ModelMemoryError: even alone, what the turn needs does not fit.
            ModelsInUseError: as for `turn`.
        """
        try:
            while not self._made_room(turn, wanted, least):
                pass
        finally:
            self._is_short = False

    def _made_room(self, turn: Turn, wanted: int, least: int) -> bool:
        with self._changed:
            keep = self._residents.find(turn.keys)
            evicted = self._residents.evict(keep) if self._residents.left < wanted else []
            if not evicted:
                if self._residents.left >= least:
                    return True
                _require_possible(self.budget, least, sum(resident.size for resident in keep))
                self._is_short = True
                _require_patience(turn)
                self._changed.wait(LOOK_SECONDS)
        self._drop(evicted)
        return False

    @property
    def left(self) -> int:
        """Bytes that nothing takes."""
        with self._changed:
            return self._residents.left

    def find(self, key: Hashable) -> Resident | None:
        """What a key names, where it is there."""
        with self._changed:
            return next(iter(self._residents.find([key])), None)

    def items(self) -> list[Any]:
        """All that is there."""
        with self._changed:
            return self._residents.items

    def usage(self) -> tuple[int, int, int]:
        """Bytes that are taken, bytes that may be, and evictions so far."""
        with self._changed:
            return self._residents.size, self.budget, self._residents.evictions

    def add(self, key: Hashable, item: Any, size: int, on: Resident | None = None) -> Resident:
        """Hold what the caller, whose turn it is to load, has loaded."""
        with self._changed:
            return self._residents.add(key, item, size, on)


def _require_patience(turn: Turn) -> None:
    if turn.give_up is None or turn.give_up():
        raise ModelsInUseError(
            "the models in use leave no room for others: try again later, or raise GENARM_MODEL_MEMORY_BYTES"
        )


def _require_possible(budget: int, least: int, kept: int) -> None:
    if kept + least > budget:
        raise ModelMemoryError(
            f"the models of this job and their KV caches need {_gib(kept + least)}, and there is a budget of "
            f"{_gib(budget)}: raise GENARM_MODEL_MEMORY_BYTES, lower GENARM_KV_CACHE_BYTES, or use smaller or fewer "
            "models; ARMs that are LoRA adapters of the base take next to nothing"
        )


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
