"""Write train.jsonl, heldout.jsonl and heldout-alignment.jsonl from the subjects, turns and forms of the TOML files.

    python examples/prompts/make_prompts.py

Seeded: the same TOML gives the same files. The three sets share no form, no subject and no turn.
"""

import itertools
import json
import random
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SEED = 20241011
PARTS = ("train", "heldout", "heldout-alignment")


def prompts_of(group: dict[str, Any], rng: random.Random) -> Iterator[str]:
    """`count` different prompts of one group; forms, subjects and turns come up about equally often."""
    forms = group["forms"]
    combinations = list(itertools.product(group.get("subjects", [""]), group.get("turns", [""])))
    rng.shuffle(combinations)
    for number in range(group["count"]):
        lap, place = divmod(number, len(combinations))
        subject, turn = combinations[place]
        yield forms[(place + lap) % len(forms)].format(subject=subject, turn=turn)


def rows(groups: dict[str, dict[str, Any]]) -> Iterator[dict[str, str]]:
    """One row per prompt, with an id that names its group; all in an order that mixes the groups."""
    rng = random.Random(SEED)
    named = [
        {"id": f"{name}-{number:02}", "prompt": prompt}
        for name, group in groups.items()
        for number, prompt in enumerate(prompts_of(group, rng), start=1)
    ]
    rng.shuffle(named)
    yield from named


def render(part: str) -> str:
    """The JSONL text of one of the parts."""
    groups = tomllib.loads((HERE / f"{part}.toml").read_text())
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows(groups))


if __name__ == "__main__":
    for part in PARTS:
        (HERE / f"{part}.jsonl").write_text(render(part))
