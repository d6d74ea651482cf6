"""What the checks found, as lines and as JSON."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

MARKS = {True: "ok", False: "FAIL", None: ".."}


@dataclass(frozen=True)
class Finding:
    """One thing that a check saw."""

    check: str
    name: str
    is_ok: bool | None
    """None: a figure, which is neither right nor wrong."""
    text: str
    figures: dict[str, float] = field(default_factory=dict)

    def line(self) -> str:
        """For people."""
        return f"{MARKS[self.is_ok]:4s} {self.check:15s} {self.name:34s} {self.text}".rstrip()

    def json(self) -> str:
        """For programs."""
        return json.dumps(asdict(self))


Note = Callable[[str, bool | None, str, dict[str, float]], None]
"""Takes a name, whether it is right, what was seen, and figures."""
