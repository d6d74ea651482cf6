"""Values of tables and of Python's JSON, as JSON has them."""

import base64
import math
from collections.abc import Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any

STRUCTURED = ("messages", "weights", "sampling", "tools", "documents", "chat_template_kwargs")
"""Columns that hold objects or lists; in CSV they are written as JSON."""


def json_row(row: Mapping[Any, Any]) -> dict[str, Any]:
    """The row as JSON has it; see `as_json`.

    NaN inside `weights` or `sampling` becomes the text "NaN", which fails its row: null there would mean the job's own.
    """
    return {str(name): as_json(value, keeps_nan=name in STRUCTURED) for name, value in row.items()}


def as_json(value: Any, *, keeps_nan: bool = False) -> Any:
    """The value as JSON has it.

    Times, dates and durations become ISO text, bytes text or base64, NaN and infinities null. A decimal becomes a
    number where a number of JSON holds it exactly, else text.

    Args:
        keeps_nan: NaN and infinities inside of objects and lists become their names instead.
    """
    if isinstance(value, dict):
        return {str(name): _inside(item, keeps_nan) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_inside(item, keeps_nan) for item in value]
    if isinstance(value, float | Decimal):
        return _number(value) if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    return _as_text(value)


def _inside(item: Any, keeps_nan: bool) -> Any:
    if keeps_nan and isinstance(item, float | Decimal) and not math.isfinite(item):
        return str(item)
    return as_json(item, keeps_nan=keeps_nan)


def _number(value: float | Decimal) -> int | float | str:
    """A finite number; a decimal as an int, a float or text, whichever is the first that is equal to it."""
    if isinstance(value, float):
        return value
    if value.as_tuple().exponent in range(1_000):
        return int(value)
    nearest = float(value)
    return nearest if Decimal(repr(nearest)) == value else str(value)


def _as_text(value: Any) -> str:
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return _iso_duration(value)
    if not isinstance(value, bytes):
        return str(value)
    try:
        return value.decode()
    except UnicodeDecodeError:
        return base64.b64encode(value).decode()


def _iso_duration(value: timedelta) -> str:
    """As pandas writes it, whose own type also has nanoseconds: P1DT2H3M4.5S."""
    if hasattr(value, "isoformat"):
        return str(value.isoformat())
    minutes, seconds = divmod(value.seconds, 60)
    hours, minutes = divmod(minutes, 60)
    fraction = f".{value.microseconds:06d}".rstrip("0") if value.microseconds else ""
    return f"P{value.days}DT{hours}H{minutes}M{seconds}{fraction}S"
