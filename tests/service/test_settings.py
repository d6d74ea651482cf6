"""Settings: a fault is a line that names the variable and holds no secret; URLs of Redis, as redis-py reads them."""

import os
from urllib.parse import quote

import pytest
import redis
from kombu import Connection
from pydantic import ValidationError

from worker import transport
from worker.app import make_app
from worker.broker import TRANSPORT_OPTIONS, reaching
from worker.broker_url import BrokerUrlError, parse_broker_url
from worker.cli.errors import one_line
from worker.dispatch import look_at_queues
from worker.embedded import redis_server
from worker.errors import HomeError
from worker.home import make_home
from worker.settings import Settings, unknown_variables


@pytest.fixture(autouse=True)
def installed():
    transport.install()


def connection_kwargs(url):
    """What kombu gives to redis-py for a broker URL."""
    broker = parse_broker_url(url)
    with Connection(broker.url, transport_options=TRANSPORT_OPTIONS | broker.options) as connection:
        channel = transport.Channel.__new__(transport.Channel)
        channel.connection = type("Transport", (), {"client": connection, "default_port": 6379})
        return channel._connparams()


@pytest.mark.parametrize(
    "url",
    [
        "redis://",
        "redis://h",
        "redis://:p%40ss%2Fw%23rd%25@h:6380/5",
        "redis://user:50%25@[::1]:6380/3",
        "redis://h:6379?db=4",
        "unix:///run/C%23%20work/redis.sock?db=2",
        "unix://user:p%2Fw@/run/redis.sock",
        "unix:///run/redis.sock?password=p%40w",
        "rediss://:s@h/1?ssl_cert_reqs=required&ssl_ca_certs=%2Fetc%2Fca.pem",
    ],
)
def test_a_broker_url_means_what_it_means_to_redis(url):
    theirs = {"db": 0, "host": "127.0.0.1", "port": 6379} | redis.ConnectionPool.from_url(url).connection_kwargs
    if "path" in theirs:
        theirs = {name: value for name, value in theirs.items() if name not in {"host", "port"}}
    ours = connection_kwargs(url)
    for name in ("db", "host", "port", "path", "username", "password", "ssl_ca_certs"):
        assert ours.get(name) == theirs.get(name), name


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis://:{}#ss@h:6379/0", "percent-encode"),
        ("redis://:{}/ss@h:6379/0", "percent-encode"),
        ("redis://:{}?ss@h:6379/0", "percent-encode"),
        ("redis://u:{};x@h/0", "percent-encode"),
        ("redis://:{}@h:99999/0", "port"),
        ("redis://:{}@h/abc", "is a number"),
        ("redis://:{}@h/0?socket_timeout=5", "the option 'socket_timeout' is not known; leave it out"),
        ("redis://:{}@h/0?ssl_cert_reqs=none", "needs TLS: rediss://"),
        ("rediss://:{}@h/0?ssl_cert_reqs=foo", "ssl_cert_reqs is one of required, optional, none"),
        ("rediss://:{}@h/0?ssl_check_hostname=maybe", "true or false"),
        ("valkey://:{}@h:6379/0", "write redis:// for valkey://"),
        ("amqp://guest:{}@h", "amqp:// is no broker"),
        ("memory://", "memory:// is no broker"),
        ("{}", "is no URL"),
        ("unix://h/x", "begins at the root"),
        ("redis://:{}@a;rediss://b", "must all be"),
        ("sentinel://:{}@h:26379/0", "master_name=NAME"),
        ("sentinel://:{}@h/mymaster", "is a number"),
        ("sentinel://:{}@h/0?master_name=m;sentinel://other/0", "the same for each"),
    ],
)
def test_a_broker_url_that_is_not_understood_is_refused_without_its_secret(url, message):
    with pytest.raises(ValidationError) as refused:
        Settings(broker_url=url.format("hunter2hunter2"))
    line = one_line(refused.value)
    assert line.startswith("GENARM_BROKER_URL: ")
    assert message in line
    assert "hunter2" not in line + str(refused.value) + repr(refused.value)


def test_servers_that_take_turns_keep_their_parts():
    assert parse_broker_url("redis://:a%3B@h1;redis://h2:1/2").url == "redis://:a%3B@h1/0;redis://h2:1/2"
    several = parse_broker_url("sentinel://:p@h1/1?master_name=m&sentinel_password=s;sentinel://:p@h2:7/1")
    assert several.url == "sentinel://:p@h1:26379/1;sentinel://:p@h2:7/1"
    assert several.options["master_name"] == "m"
    assert several.options["sentinel_kwargs"]["password"] == "s"
    assert "p@h1" not in repr(several)


def test_the_broker_is_that_of_the_settings_and_of_no_other_variable(broker_url, monkeypatch, tmp_path):
    for name in ("CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL"):
        monkeypatch.setenv(name, "redis://127.0.0.1:1/0")
    assert look_at_queues(make_app(Settings(home=tmp_path, broker_url=broker_url)))[1] == 0


@pytest.mark.parametrize("name", ["C# work", "50% done", "a?b c", "ä;x=y", "tab\there", "\udcff"])
def test_the_embedded_redis_answers_in_a_home_of_any_name(tmp_path, name):
    settings = Settings(home=tmp_path / name)
    connection = Connection(settings.broker.url, transport_options=TRANSPORT_OPTIONS)
    with redis_server(settings), connection, reaching(connection) as client:
        assert client.ping()
    assert settings.home.is_dir()


def test_variables_that_are_empty_count_as_unset(monkeypatch):
    for name in Settings.model_fields:
        monkeypatch.setenv(f"GENARM_{name.upper()}", "  " if name == "device" else "")
    assert Settings() == Settings(**{name: field.default for name, field in Settings.model_fields.items()})
    assert Settings().is_embedded


@pytest.mark.parametrize("name", [name for name in Settings.model_fields if name not in {"home", "device", "bases"}])
def test_every_faulty_setting_is_a_line_that_names_it_and_not_its_value(monkeypatch, name):
    if name == "metrics_host":
        pytest.skip("any text is a host until the port is opened")
    monkeypatch.setenv(f"GENARM_{name.upper()}", "hunter2://hunter2")
    with pytest.raises(ValidationError) as refused:
        Settings()
    assert one_line(refused.value).startswith(f"GENARM_{name.upper()}: ")
    assert len(one_line(refused.value).splitlines()) == 1
    if name != "database_url":  # whose scheme is named
        assert "hunter2" not in one_line(refused.value).removeprefix("GENARM_BROKER_URL: hunter2://")


def test_a_variable_that_is_misspelt_is_named_with_the_one_that_is_meant():
    environment = {"GENARM_MAX_RUNING": "3", "genarm_home": "x", "GENARM_REGISTRY": "y", "GENARM_QQQ": "", "PATH": ""}
    assert unknown_variables(environment) == {"GENARM_MAX_RUNING": "GENARM_MAX_RUNNING", "GENARM_QQQ": None}


def test_a_home_that_cannot_be_made_says_what_is_in_its_way(tmp_path):
    (tmp_path / "file").touch()
    for home in (tmp_path / "file", tmp_path / "file" / "home"):
        with pytest.raises(HomeError, match=rf"{tmp_path / 'file'} is no folder; set GENARM_HOME"):
            make_home(home)
    with pytest.raises(HomeError, match=r"cannot be made: .*; set GENARM_HOME"):
        make_home(tmp_path / ("long" * 100))
    make_home(tmp_path / "home")
    assert (tmp_path / "home").is_dir()


@pytest.mark.skipif(os.getuid() != 0, reason="another user is needed, who may not write")
def test_a_home_that_another_user_owns_says_permission(tmp_path):
    tmp_path.chmod(0o755)
    os.seteuid(65534)
    try:
        with pytest.raises(HomeError, match="permission denied; set GENARM_HOME"):
            make_home(tmp_path)
        with pytest.raises(HomeError, match="permission denied; set GENARM_HOME"):
            make_home(tmp_path / "home")
    finally:
        os.seteuid(0)


def test_quoting_is_undone_once(tmp_path):
    assert quote("%25") in parse_broker_url("redis://:%2525@h").url
    with pytest.raises(BrokerUrlError):
        parse_broker_url("")
