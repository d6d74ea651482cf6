"""The fixtures of a service, and of the command line, for what is deployed."""

from tests.cli.conftest import environment  # noqa: F401 - a fixture
from tests.service.conftest import ledger, settings, submit, wait_until, worker  # noqa: F401 - fixtures
