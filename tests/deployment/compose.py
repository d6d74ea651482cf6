"""Compose files as docker compose reads them: variables filled in, overlays merged."""

import os
import re
from pathlib import Path
from typing import Any

import yaml

VARIABLE = re.compile(r"\$(?:\$|\{(\w+)(?:(:-|:\?)([^}]*))?\})")


def load(*files: str, **variables: str) -> dict[str, Any]:
    """The files, the later ones over the earlier ones."""
    merged: dict[str, Any] = {}
    for file in files:
        merged = _merged(merged, _filled(yaml.safe_load(Path(file).read_text()), variables))
    return merged


def _filled(node: Any, variables: dict[str, str]) -> Any:
    if isinstance(node, dict):
        return {name: _filled(value, variables) for name, value in node.items()}
    if isinstance(node, list):
        return [_filled(value, variables) for value in node]
    return VARIABLE.sub(lambda found: _value(found, variables), node) if isinstance(node, str) else node


def _value(found: re.Match[str], variables: dict[str, str]) -> str:
    name, operator, word = found.groups()
    if name is None:
        return "$"
    if variables.get(name):
        return variables[name]
    if operator == ":-":
        return word
    raise KeyError(f"{name}: {word or 'is not set'}")


def _merged(lower: Any, upper: Any) -> Any:
    if isinstance(lower, dict) and isinstance(upper, dict):
        return {**lower, **{name: _merged(lower.get(name), value) for name, value in upper.items()}}
    return upper


def environment(service: dict[str, Any], replaced: dict[str, str]) -> dict[str, str]:
    """A process's environment: the service's own, with the names of other services replaced, and nothing of ours."""
    ours = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "TMPDIR")}
    theirs = {}
    for name, value in service["environment"].items():
        for old, new in replaced.items():
            value = value.replace(old, new)  # noqa: PLW2901
        theirs[name] = value
    return ours | theirs
