"""Named points of the service at which tests stop it, break it, or let another worker act; unset, they cost nothing."""

from collections.abc import Callable
from enum import Enum


class Point(Enum):
    """A place between two steps, where a crash or a delay is told apart from one elsewhere."""

    AFTER_CLAIM = "the shard is leased, its rows are not read"
    AFTER_GENERATE = "a row is finished, and not handed to the writer"
    INSIDE_COMMIT = "outcomes are inserted, the transaction is not committed"
    AFTER_COMMIT = "all rows are committed, the shard is not completed"
    BEFORE_ACK = "the shard is completed, its message is not acknowledged"


Action = Callable[[], None]
_actions: dict[Point, Action] = {}


def reach(point: Point) -> None:
    """Do here what a test asked for."""
    if _actions and (action := _actions.get(point)) is not None:
        action()


def at(point: Point, action: Action | None) -> None:
    """Ask for an action at a point; None asks for none."""
    if action is None:
        _actions.pop(point, None)
    else:
        _actions[point] = action
