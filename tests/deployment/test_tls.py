"""TLS to Redis and PostgreSQL through their URLs, with a CA made here; what is not trusted is refused in one line."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import sqlalchemy as sa
import trustme

from db.errors import DatabaseUnreachableError
from db.session import connect, reading
from tests.cli.conftest import COMMAND
from tests.deployment.tls import tls_front
from tests.service.fake_engine import FakeEngine
from tests.service.test_worker import is_done
from worker.app import make_app
from worker.dispatch import dispatch
from worker.errors import BrokerUnreachableError
from worker.settings import Settings

SECURITY = Path("docs/security.md").read_text()
PASSWORD = "hunter2hunter2"


@pytest.fixture(scope="session")
def authority():
    """A CA, of which nobody outside this test has heard."""
    return trustme.CA()


@pytest.fixture(scope="session")
def ca_file(authority, tmp_path_factory):
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return path


@pytest.fixture(scope="session")
def other_ca_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("other-ca") / "ca.pem"
    trustme.CA().cert_pem.write_to_path(path)
    return path


@pytest.fixture
def redis_port(authority, redis_client, redis_socket):
    """A port with TLS before the redis-server, on which the ACL user of docs/security.md may log in."""
    rule = re.search(r"^ACL SETUSER .*$", SECURITY, re.MULTILINE)[0].replace(">PASSWORD", f">{PASSWORD}")
    redis_client.execute_command(*rule.split())
    with tls_front(authority.issue_cert("localhost"), redis_socket) as port:
        yield port
    redis_client.execute_command("ACL", "DELUSER", "genarm")


@pytest.fixture
def postgres_port(authority, postgres_url):
    folder = Path(sa.make_url(postgres_url).query["host"])
    with tls_front(authority.issue_cert("localhost"), folder / ".s.PGSQL.5432", speaks_postgres=True) as port:
        yield port


def documented(scheme):
    """The URL that docs/security.md shows for it."""
    return re.search(rf"`({scheme}://[^`]*)`", SECURITY)[1]


def redis_url(port, ca_file, host="localhost", password=PASSWORD):
    url = documented("rediss").replace("USER:PASSWORD@HOST:6380", f"genarm:{password}@{host}:{port}")
    return url.replace("/etc/ssl/redis-ca.pem", str(ca_file))


def with_broker(settings, url):
    return settings.model_copy(update={"broker_url": Settings(broker_url=url).broker_url})


def database_url(port, ca_file, ledger_url, host="localhost"):
    plain = sa.make_url(ledger_url)
    url = documented("postgresql").replace(
        "USER:PASSWORD@HOST/genarm", f"{plain.username}@{host}:{port}/{plain.database}"
    )
    return url.replace("/etc/ssl/postgres-ca.pem", str(ca_file))


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_a_job_runs_with_tls_to_both(
    worker, settings, ledger, submit, wait_until, redis_port, postgres_port, ca_file, ledger_url
):
    both = with_broker(settings, redis_url(redis_port, ca_file))
    secret = Settings(database_url=database_url(postgres_port, ca_file, ledger_url)).database_url
    worker(broker_url=both.broker_url, database_url=secret)
    job_id = submit("one", "two", "three")
    dispatch(make_app(both), ledger, both)
    wait_until(is_done(ledger, job_id))


def refusal(settings, url):
    with pytest.raises(BrokerUnreachableError) as refused:
        dispatch(make_app(with_broker(settings, url), FakeEngine), None, settings)
    message = str(refused.value)
    assert PASSWORD not in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_a_redis_that_is_not_trusted_is_refused(settings, redis_port, ca_file, other_ca_file):
    other_ca = refusal(settings, redis_url(redis_port, other_ca_file))
    assert re.search(r"is not trusted: .*certificate.*; check ssl_ca_certs and the host", other_ca)
    other_host = refusal(settings, redis_url(redis_port, ca_file, host="127.0.0.1"))
    assert re.search(r"is not trusted: .*127\.0\.0\.1.*; check", other_host)
    unsaid = redis_url(redis_port, ca_file).partition("?")[0]
    assert "is not trusted" in refusal(settings, unsaid)
    assert "is not trusted" in refusal(settings, f"{unsaid}?ssl_check_hostname=true")
    plain = redis_url(redis_port, ca_file).replace("rediss", "redis").partition("?")[0]
    assert "does not answer" in refusal(settings, plain)


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_a_wrong_password_for_redis_is_called_that(settings, redis_port, ca_file):
    message = refusal(settings, redis_url(redis_port, ca_file, password="wrongwrong"))
    assert "refuses the user or the password of GENARM_BROKER_URL" in message
    assert "wrongwrong" not in message


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_a_database_that_is_not_trusted_is_refused(ledger_url, postgres_port, ca_file, other_ca_file):
    for ca, host, reason in (
        (other_ca_file, "localhost", "certificate verify failed"),
        (ca_file, "127.0.0.1", 'server certificate for "localhost" does not match host name'),
        ("/nowhere.pem", "localhost", 'root certificate file "/nowhere.pem" does not exist'),
    ):
        untrusted = connect(database_url(postgres_port, ca, ledger_url, host))
        with pytest.raises(DatabaseUnreachableError, match=rf"is not trusted: .*{reason}"), reading(untrusted):
            pass
        untrusted.dispose()
    trusted = connect(database_url(postgres_port, ca_file, ledger_url))
    with reading(trusted) as connection:
        assert connection.execute(sa.text("SELECT 1")).scalar() == 1
    trusted.dispose()


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_the_doctor_names_both_in_a_line_each(
    environment, ledger_url, redis_port, postgres_port, other_ca_file, tmp_path
):
    asked = environment | {
        "GENARM_BROKER_URL": redis_url(redis_port, other_ca_file),
        "GENARM_DATABASE_URL": database_url(postgres_port, other_ca_file, ledger_url),
        "GENARM_ALLOW_ANY_MODEL": "true",
    }
    done = subprocess.run(
        [*COMMAND, "doctor", "--json"], cwd=tmp_path, env=asked, capture_output=True, text=True, check=False
    )
    wrong = [row for row in map(json.loads, done.stdout.splitlines()) if not row["ok"]]
    assert [row["check"] for row in wrong] == ["database", "redis"]
    assert all("is not trusted" in row["found"] and "\n" not in row["found"] for row in wrong)
    assert PASSWORD not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_rediss_url_is_verified_unless_it_says_how():
    def effective(url):
        return Settings(broker_url=url).broker.url

    assert effective("rediss://a:b@c/0") == "rediss://a:b@c/0?ssl_cert_reqs=required"
    assert effective("rediss://c/0?ssl_ca_certs=x").endswith("?ssl_ca_certs=x&ssl_cert_reqs=required")
    assert effective("rediss://c/0?ssl_cert_reqs=none") == "rediss://c/0?ssl_cert_reqs=none"
    assert effective("redis://c/0") == "redis://c/0"
