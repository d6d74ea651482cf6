"""The example prompts: what their script writes, without duplicates, nothing shared between the two sets."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PROMPTS = Path(__file__).parents[2] / "examples" / "prompts"


@pytest.fixture
def rows():
    def read(part):
        return [json.loads(line) for line in (PROMPTS / f"{part}.jsonl").read_text().splitlines()]

    return read


def test_the_committed_prompts_are_those_that_the_script_writes(tmp_path):
    for name in ("make_prompts.py", "train.toml", "heldout.toml"):
        (tmp_path / name).write_bytes((PROMPTS / name).read_bytes())

    subprocess.run([sys.executable, tmp_path / "make_prompts.py"], check=True)

    for name in ("train.jsonl", "heldout.jsonl"):
        assert (tmp_path / name).read_bytes() == (PROMPTS / name).read_bytes()


def test_there_are_enough_prompts_and_none_comes_twice(rows):
    train, heldout = rows("train"), rows("heldout")

    assert len(train) >= 600
    assert len(heldout) >= 128
    for field in ("id", "prompt"):
        values = [row[field] for row in train + heldout]
        assert len(values) == len(set(values))


@pytest.mark.parametrize("part", ["forms", "subjects", "turns"])
def test_training_and_held_out_prompts_share_no_part(part):
    train, heldout = (tomllib.loads((PROMPTS / f"{name}.toml").read_text()) for name in ("train", "heldout"))

    def parts(groups):
        return {one for group in groups.values() for one in group.get(part, [])}

    assert not parts(train) & parts(heldout)
