"""A folder with the files that the documentation speaks of, and tiny models under the names that it uses."""

import json
import shutil
from pathlib import Path

import pytest

from tests.service.conftest import ledger, run_shards, service, settings, submit  # noqa: F401 - fixtures
from tests.tiny_models import make_adapter, make_model

BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
ARM = "examples/arms/positive"
PAIR = {"prompt": "How was it?", "chosen": "yes yes", "rejected": "no"}


@pytest.fixture(scope="session")
def shelf(tmp_path_factory):
    """Tiny models in folders named like the documentation's."""
    folder = tmp_path_factory.mktemp("shelf")
    make_model(folder / BASE, seed=1, context=2048)
    make_adapter(folder / ARM, folder / BASE, seed=2)
    return folder


@pytest.fixture
def folder(tmp_path, shelf):
    """A working folder: models where the documentation has them, prompts, pairs, a registry beside."""
    shutil.copytree(shelf, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model").symlink_to(tmp_path / BASE)
    rows = [{"id": index, "prompt": f"How was your day {index}?", "response": "Good."} for index in range(3)]
    for name in ("prompts.jsonl", "responses.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "reviews.csv").write_text("text\nGood\nBad\n")
    for name in ("pairs.jsonl", "heldout.jsonl"):
        (tmp_path / name).write_text((json.dumps(PAIR) + "\n") * 4)
    shutil.copy(".env.example", tmp_path)
    return tmp_path


@pytest.fixture
def shared(folder):
    """The same with the registry of docs/deploy.md in its home."""
    home = folder / ".genarm"
    home.mkdir()
    entries = {"smollm2": ("base", folder / BASE), "positive": ("arm", folder / ARM)}
    text = "".join(f'[models.{name}]\nkind = "{kind}"\npath = "{path}"\n' for name, (kind, path) in entries.items())
    (home / "models.toml").write_text(f'folders = ["{folder}"]\n{text}')
    return folder


def lines_of(blocks, page):
    """The lines of a page's blocks, in order."""
    return "\n".join(block.text for block in blocks if Path(block.page).name == page)
