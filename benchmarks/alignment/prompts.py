"""The held-out prompts, on which every method is judged; no ARM was trained on any of them."""

import json
from dataclasses import dataclass
from pathlib import Path

FILES = ("heldout.jsonl", "heldout-alignment.jsonl")


@dataclass(frozen=True)
class Prompt:
    """One prompt. Its index is what its random numbers are drawn from."""

    index: int
    id: str
    text: str


def read_prompts(folder: Path, limit: int | None = None) -> list[Prompt]:
    """All held-out prompts of a folder, or the first `limit`."""
    lines = [line for name in FILES for line in (folder / name).read_text(encoding="utf-8").splitlines()]
    rows = [json.loads(line) for line in lines[:limit]]
    return [Prompt(index, row["id"], row["prompt"]) for index, row in enumerate(rows)]
