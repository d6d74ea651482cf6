"""Fixtures that need real servers: started once for the session, emptied for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from worker.embedded import redis_server
from worker.settings import Settings


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
