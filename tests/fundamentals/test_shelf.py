"""Threads that share memory for models: who loads, who waits, and that everybody has a turn."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from models.errors import ModelMemoryError, ModelsInUseError
from models.residents import Resident
from models.shelf import Shelf

SIZE = 10


class Loader(threading.Thread):
    """Has a turn at some keys, of which it loads the missing ones."""

    def __init__(self, shelf: Shelf, keys: str, gate: threading.Event | None = None) -> None:
        super().__init__(daemon=True)
        self.shelf, self.keys, self.gate = shelf, list(keys), gate
        self.given_up = threading.Event()
        self.held: list[Resident] = []
        self.loaded = ""
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            with self.shelf.turn(self.keys, self.given_up.is_set) as turn:
                if turn.is_loading:
                    self._load(turn)
            self.held = turn.residents
        except Exception as error:
            self.error = error

    def _load(self, turn: Any) -> None:
        missing = [key for key in self.keys if not self.shelf.find(key)]
        self.shelf.make_room(turn, SIZE * len(missing), SIZE * len(missing))
        if self.gate is not None:
            assert self.gate.wait(10)
        for key in missing:
            self.shelf.add(key, key, SIZE)
        self.loaded = "".join(missing)

    def holds(self) -> "Loader":
        self.join(10)
        assert self.held, self.error
        return self

    def let_go(self) -> None:
        self.shelf.let_go(self.held)


@pytest.fixture
def dropped() -> list[str]:
    return []


@pytest.fixture
def shelf(dropped: list[str]) -> Shelf:
    """Room for two."""
    return Shelf(2 * SIZE, dropped.extend)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def is_waiting(shelf: Shelf, loaders: int = 1) -> Callable[[], bool]:
    """Whether so many have no turn yet, the first of them for want of memory."""
    return lambda: shelf._is_short and len(shelf._turns) == loaders


def test_what_nobody_uses_makes_room(shelf: Shelf, dropped: list[str]) -> None:
    for key in "ab":
        Loader(shelf, key).holds().let_go()
    Loader(shelf, "a").holds().let_go()
    assert Loader(shelf, "c").holds().loaded == "c"
    assert dropped == ["b"]


def test_one_that_needs_memory_waits_for_users_and_new_ones_wait_behind_it(shelf: Shelf, dropped: list[str]) -> None:
    first = Loader(shelf, "ab").holds()
    waiting = Loader(shelf, "c")
    wait_until(is_waiting(shelf))
    assert not shelf.hold(first.held)
    behind = Loader(shelf, "ab")
    wait_until(is_waiting(shelf, 2))
    assert shelf.hold_again(first.held)  # a row of one who holds it already
    shelf.let_go(first.held)
    assert waiting.is_alive()
    first.let_go()
    assert waiting.holds().loaded == "c"
    wait_until(is_waiting(shelf))
    waiting.let_go()
    assert behind.holds().loaded == "a"  # the least recently used of them
    assert dropped == ["a", "c"]


def test_all_who_wait_for_the_same_get_it_together(shelf: Shelf) -> None:
    first = Loader(shelf, "ab").holds()
    one = Loader(shelf, "c")
    wait_until(is_waiting(shelf))
    between = Loader(shelf, "ab")
    wait_until(is_waiting(shelf, 2))
    other = Loader(shelf, "c")
    wait_until(is_waiting(shelf, 3))
    first.let_go()
    one.holds()
    assert other.holds().loaded == ""
    assert between.is_alive()
    one.let_go()
    other.let_go()
    between.holds()


def test_while_one_loads_others_use_what_is_there(shelf: Shelf) -> None:
    Loader(shelf, "a").holds().let_go()
    gate = threading.Event()
    loading = Loader(shelf, "b", gate)
    wait_until(lambda: bool(shelf._turns))
    there = Loader(shelf, "a").holds()
    assert loading.is_alive()
    assert shelf.hold(there.held)
    gate.set()
    loading.holds()


def test_one_who_gives_up_leaves_the_way_free(shelf: Shelf) -> None:
    first = Loader(shelf, "ab").holds()
    waiting = Loader(shelf, "c")
    wait_until(is_waiting(shelf))
    behind = Loader(shelf, "b")
    wait_until(is_waiting(shelf, 2))
    waiting.given_up.set()
    waiting.join(10)
    assert isinstance(waiting.error, ModelsInUseError)
    assert behind.holds().loaded == ""
    assert shelf.hold(first.held)


def test_one_behind_another_may_give_up_too(shelf: Shelf) -> None:
    Loader(shelf, "ab").holds()
    Loader(shelf, "c")
    wait_until(is_waiting(shelf))
    behind = Loader(shelf, "a")
    behind.given_up.set()
    behind.join(10)
    assert isinstance(behind.error, ModelsInUseError)


def test_a_load_that_fails_leaves_the_way_free(shelf: Shelf) -> None:
    with pytest.raises(ValueError, match="broken"), shelf.turn(["a"], None):
        raise ValueError("broken")
    assert Loader(shelf, "a").holds().loaded == "a"


def test_more_than_there_is_room_for_is_an_error_at_once(shelf: Shelf) -> None:
    Loader(shelf, "a").holds()
    too_much = Loader(shelf, "abc")
    too_much.join(10)
    assert isinstance(too_much.error, ModelMemoryError)
    assert "GENARM_MODEL_MEMORY_BYTES" in str(too_much.error)


def test_without_patience_there_is_no_waiting(shelf: Shelf) -> None:
    Loader(shelf, "ab").holds()
    with pytest.raises(ModelsInUseError), shelf.turn(["c"], None) as turn:
        shelf.make_room(turn, SIZE, SIZE)
