"""The fixtures of the service's tests, and fault points that are cleared after each test."""

import pytest

from db import faults
from tests.ledger.conftest import expire  # noqa: F401
from tests.service.conftest import *  # noqa: F403 - its fixtures are those of these tests too


@pytest.fixture
def once():
    """Do something when a fault point is reached for the first time; the rest of the time it does nothing."""
    points = []

    def once(point, action):
        def act():
            faults.at(point, None)
            action()

        points.append(point)
        faults.at(point, act)

    yield once
    for point in points:
        faults.at(point, None)
