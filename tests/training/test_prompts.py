"""The example prompts: what their script writes, without duplicates, nothing shared between the sets."""

import json
import subprocess
import sys
import tomllib
from itertools import combinations
from pathlib import Path

import pytest

PROMPTS = Path(__file__).parents[2] / "examples" / "prompts"
PARTS = ("train", "heldout", "heldout-alignment")


@pytest.fixture
def rows():
    def read(part):
        return [json.loads(line) for line in (PROMPTS / f"{part}.jsonl").read_text().splitlines()]

    return read


def test_the_committed_prompts_are_those_that_the_script_writes(tmp_path):
    for name in ("make_prompts.py", *(f"{part}.toml" for part in PARTS)):
        (tmp_path / name).write_bytes((PROMPTS / name).read_bytes())

    subprocess.run([sys.executable, tmp_path / "make_prompts.py"], check=True)

    for name in (f"{part}.jsonl" for part in PARTS):
        assert (tmp_path / name).read_bytes() == (PROMPTS / name).read_bytes()


def test_there_are_enough_prompts_and_none_comes_twice(rows):
    train, heldout, more = (rows(part) for part in PARTS)

    assert len(train) >= 600
    assert len(heldout) >= 128
    assert len(heldout + more) == 300
    for field in ("id", "prompt"):
        values = [row[field] for row in train + heldout + more]
        assert len(values) == len(set(values))


@pytest.mark.parametrize("part", ["forms", "subjects", "turns"])
def test_no_two_sets_of_prompts_share_a_part(part):
    sets = [tomllib.loads((PROMPTS / f"{name}.toml").read_text()) for name in PARTS]

    parts = [{one for group in groups.values() for one in group.get(part, [])} for groups in sets]

    for one, other in combinations(parts, 2):
        assert not one & other
