"""Models that somebody spoiled, and the service that meets them."""

import shutil

import pytest

from tests.service.conftest import *  # noqa: F403 - its fixtures are those of these tests too
from tests.tiny_models import make_adapter, make_model


@pytest.fixture(scope="session")
def good_models(tmp_path_factory):
    """A folder with a tiny base, and an adapter of it."""
    folder = tmp_path_factory.mktemp("good")
    make_model(folder / "base", seed=1)
    make_adapter(folder / "arm", folder / "base", seed=2)
    return folder


@pytest.fixture
def home(tmp_path, good_models):
    """A home folder with copies of both models that a test may spoil, and no registry yet."""
    folder = tmp_path / "home"
    shutil.copytree(good_models, folder / "shelf")
    return folder


@pytest.fixture
def register(home):
    """Write the registry; the base and the arm unless other text is given."""

    def write(text=None):
        base = '[models.tiny]\nkind = "base"\npath = "shelf/base"\n'
        arm = '[models.nice]\nkind = "arm"\npath = "shelf/arm"\n'
        (home / "models.toml").write_text(base + arm if text is None else text)
        return home

    return write
