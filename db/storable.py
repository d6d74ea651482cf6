"""Text as databases can hold it: without NUL, and without half of a surrogate pair that stands alone."""

import json
import re
from typing import Any

UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_dumps = json.JSONEncoder().encode


def storable(text: str) -> str:
    """The text with U+FFFD for each character that a database cannot hold."""
    return UNSTORABLE.sub("\ufffd", text)


def storable_json(value: Any) -> str:
    """The value as JSON, its texts as `storable` gives them.

    PostgreSQL would store the others in a `json` column, and then fail each query that looks into such a row.
    """
    text = _dumps(value)
    # What JSON writes for these characters; whole pairs begin like half ones.
    is_suspect = "\\u0000" in text or "\\ud" in text
    return _dumps(_storable(value)) if is_suspect else text


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, dict):
        return {storable(name): _storable(item) for name, item in value.items()}
    return [_storable(item) for item in value] if isinstance(value, list | tuple) else value
