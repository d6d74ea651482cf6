"""A tiny base and pairs that it can learn."""

import json

import pytest

from models.loading import describe
from tests.tiny_models import make_model


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("tiny") / "base", sharpness=1.0)


@pytest.fixture
def description(tiny_base, tmp_path):
    return describe(str(tiny_base), tmp_path)


@pytest.fixture
def pairs_file(tmp_path):
    """Pairs that prefer one word over another."""
    path = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": f"question {n}", "chosen": "yes " * (1 + n % 4), "rejected": "no " * (1 + (n * 7) % 5)}
        for n in range(48)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
