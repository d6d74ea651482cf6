"""The embedded redis-server: shared by the processes of a home, stopped by the last of them."""

import multiprocessing
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.children import child
from worker.embedded import redis_server, revive_redis
from worker.errors import RedisStartError
from worker.settings import Settings


@pytest.fixture
def settings(tmp_path):
    return Settings(home=tmp_path / "home", broker_url=None)


def client(settings):
    return redis.Redis(unix_socket_path=str(settings.redis_socket), retry=Retry(NoBackoff(), 0))


def answers(settings):
    try:
        return client(settings).ping()
    except redis.ConnectionError:
        return False


def test_runs_inside_the_block_only(settings):
    with redis_server(settings):
        assert answers(settings)
    assert not answers(settings)


def test_second_user_joins_the_running_server_and_the_last_one_stops_it(settings):
    first, second = redis_server(settings), redis_server(settings)
    first.__enter__()
    client(settings).set("who", "first")
    second.__enter__()
    assert client(settings).get("who") == b"first"
    first.__exit__(None, None, None)
    assert client(settings).get("who") == b"first"
    second.__exit__(None, None, None)
    assert not answers(settings)


def test_a_server_that_died_is_started_again_and_one_that_lives_is_left_alone(settings):
    with redis_server(settings):
        assert not revive_redis(settings)
        os.kill(client(settings).info()["process_id"], signal.SIGKILL)
        assert revive_redis(settings)
        assert answers(settings)
    assert not answers(settings)


HOLD = """
import sys
from worker.embedded import redis_server, revive_redis
from worker.settings import Settings
with redis_server(Settings(home=sys.argv[1])):
    print("up", flush=True)
    sys.stdin.read()
"""


def test_a_killed_user_does_not_keep_the_server_alive(settings):
    command = [sys.executable, "-c", HOLD, settings.home]
    with child(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"up\n"
        with redis_server(settings):
            os.kill(holder.pid, signal.SIGKILL)
            holder.wait()
            assert answers(settings)
    assert not answers(settings)


def _enter_and_leave(home, barrier):
    barrier.wait()
    settings = Settings(home=home, broker_url=None)
    with redis_server(settings):
        assert client(settings).incr("users") >= 1
        barrier.wait()
        assert client(settings).get("users") == b"4"
        barrier.wait()


def test_processes_that_start_at_the_same_moment_share_one_server(settings):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)
    users = [context.Process(target=_enter_and_leave, args=(settings.home, barrier), daemon=True) for _ in range(4)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert [user.exitcode for user in users] == [0, 0, 0, 0]
    assert not answers(settings)


def test_only_the_owner_may_connect_and_no_port_is_open(settings):
    with redis_server(settings):
        assert stat.S_IMODE(settings.redis_socket.stat().st_mode) == 0o700
        configured = client(settings).config_get("*")
    assert configured["port"] == "0"
    assert configured["maxmemory-policy"] == "noeviction"
    assert configured["save"] == ""
    assert configured["appendonly"] == "no"


def test_a_home_with_a_long_path_puts_the_socket_elsewhere(tmp_path):
    settings = Settings(home=tmp_path / ("deep" * 30) / "home", broker_url=None)
    with redis_server(settings):
        assert answers(settings)
    assert settings.home not in settings.redis_socket.parents
    assert stat.S_IMODE(settings.redis_socket.parent.stat().st_mode) == 0o700
    settings.redis_socket.parent.rmdir()


def test_a_socket_folder_of_somebody_else_is_refused(tmp_path):
    settings = Settings(home=tmp_path / ("deep" * 31) / "home", broker_url=None)
    settings.redis_socket.parent.mkdir(mode=0o777)
    settings.redis_socket.parent.chmod(0o777)
    with pytest.raises(RedisStartError, match="GENARM_HOME"), redis_server(settings):
        pass
    settings.redis_socket.parent.rmdir()


def test_a_server_that_cannot_start_says_why(settings, tmp_path, monkeypatch):
    broken = tmp_path / "bin" / "redis-server"
    broken.parent.mkdir()
    broken.write_text(f"#!/bin/sh\necho out of luck > {settings.home / 'redis.log'}\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(broken.parent), prepend=os.pathsep)
    with pytest.raises(RedisStartError, match="out of luck"), redis_server(settings):
        pass


def test_with_a_broker_url_nothing_is_started(tmp_path):
    settings = Settings(home=tmp_path / "home", broker_url="redis://nowhere")
    with redis_server(settings):
        assert not Path(settings.home).exists()
