"""The least rights of docs/security.md: enough for the work, and for nothing else."""

import re
import socket
import subprocess
import time
from pathlib import Path

import pytest
import redis
import sqlalchemy as sa

from db.session import connect
from tests.children import child
from tests.service.test_worker import is_done
from worker.app import make_app
from worker.dispatch import dispatch
from worker.embedded import redis_binary

SECURITY = Path("docs/security.md").read_text()


@pytest.fixture
def redis_admin(tmp_path):
    """A redis-server on a port."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    command = [str(redis_binary()), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(tmp_path), "--save", ""]
    with child(command, stdout=subprocess.DEVNULL), redis.Redis(port=port) as client:
        deadline = time.monotonic() + 20
        while True:
            try:
                client.ping()
                break
            except redis.ConnectionError:
                assert time.monotonic() < deadline
                time.sleep(0.02)
        yield client


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_a_redis_user_with_the_documented_rights_can_run_jobs_and_nothing_more(
    redis_admin, worker, settings, ledger, submit, wait_until
):
    rule = re.search(r"^ACL SETUSER .*$", SECURITY, re.MULTILINE)[0].replace(">PASSWORD", ">hunter2")
    redis_admin.execute_command(*rule.split())
    port = redis_admin.get_connection_kwargs()["port"]
    url = f"redis://genarm:hunter2@127.0.0.1:{port}/0"
    settings = settings.model_copy(update={"broker_url": type(settings)(broker_url=url).broker_url})
    worker(broker_url=settings.broker_url)
    job_id = submit("one", "two", "three")
    dispatch(make_app(settings), ledger, settings)
    wait_until(is_done(ledger, job_id))
    denied = {entry[b"object"] for entry in redis_admin.execute_command("ACL", "LOG")}
    assert denied <= {b"client"}  # CLIENT SETINFO, which this Redis does not know
    user = redis.Redis(port=port, username="genarm", password="hunter2")
    for command in (
        ["FLUSHALL"],
        ["CONFIG", "GET", "*"],
        ["KEYS", "*"],
        ["GET", "others"],
        ["SHUTDOWN"],
        ["ACL", "LIST"],
    ):
        with pytest.raises(redis.exceptions.NoPermissionError):
            user.execute_command(*command)


@pytest.fixture
def roles(ledger_url):
    """Roles with the documented rights."""
    owner = connect(ledger_url)
    with owner.begin() as connection:
        for role in ("workers", "readers"):
            connection.execute(sa.text(f"DROP ROLE IF EXISTS {role}"))
            connection.execute(sa.text(f"CREATE ROLE {role} LOGIN"))
            connection.execute(sa.text(f"GRANT USAGE ON SCHEMA public TO {role}"))
        for grant in re.findall(r"^GRANT .*;$", SECURITY, re.MULTILINE):
            connection.execute(sa.text(grant))
    yield {role: sa.make_url(ledger_url).set(username=role) for role in ("workers", "readers")}
    with owner.begin() as connection:
        for role in ("workers", "readers"):
            connection.execute(sa.text(f"DROP OWNED BY {role}"))
            connection.execute(sa.text(f"DROP ROLE {role}"))
    owner.dispose()


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_database_roles_with_the_documented_rights_can_work_and_read_and_nothing_more(
    ledger_url, roles, worker, settings, ledger, submit, publish, wait_until
):
    secret = type(settings)(database_url=roles["workers"].render_as_string(hide_password=False)).database_url
    worker(database_url=secret)
    job_id = submit("one", "two", "three")
    publish()
    wait_until(is_done(ledger, job_id))
    for role, refused in (
        ("workers", "DROP TABLE jobs"),
        ("readers", "SELECT * FROM jobs"),
        ("readers", "DELETE FROM requests"),
    ):
        engine = connect(roles[role].render_as_string(hide_password=False))
        with engine.connect() as connection, pytest.raises(sa.exc.DBAPIError, match=r"permission denied|must be owner"):
            connection.execute(sa.text(refused))
        engine.dispose()
    reader = connect(roles["readers"].render_as_string(hide_password=False))
    with reader.connect() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM results")).scalar() == 3
    reader.dispose()
