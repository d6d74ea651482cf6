"""A tiny model with room for the longest prompt of the workloads that tests run."""

from pathlib import Path

import pytest

from tests.one_thread import one_thread  # noqa: F401
from tests.tiny_models import make_model


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("base"), context=1024)
