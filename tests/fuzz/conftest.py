"""A home with a registry and two tiny models, and the tally at the end."""

import pytest

from tests.fuzz import inputs
from tests.tiny_models import make_adapter, make_model


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """A home whose registry has a base `tiny` and an ARM `nice`."""
    folder = tmp_path_factory.mktemp("fuzz")
    make_model(folder / "tiny", seed=1)
    make_adapter(folder / "nice", folder / "tiny", seed=2)
    (folder / "models.toml").write_text(
        '[models.tiny]\nkind = "base"\npath = "tiny"\n[models.nice]\nkind = "arm"\npath = "nice"\n'
    )
    return folder


@pytest.fixture(autouse=True)
def nothing_from_the_hub(monkeypatch, tmp_path):
    """A text that looks like a hub id is looked for in an empty cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))


def pytest_terminal_summary(terminalreporter):
    """Say how many inputs were fed."""
    if inputs.fed:
        terminalreporter.write_line(f"fuzzing: {inputs.fed:,} inputs")
