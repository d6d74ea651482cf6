"""Database URLs: read as libpq and SQLAlchemy read them, or refused by name; and what a database says, for people."""

import psycopg
import pytest
import sqlalchemy as sa
from psycopg.conninfo import conninfo_to_dict

from db import session
from db.errors import DatabaseUnreachableError, DbError
from db.jobs import list_jobs
from db.migrations import runner
from db.urls import connection_parameters, parse_url, sqlite_url


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:p%40ss%2Fw%23rd%25@h:5433/db?sslmode=verify-full&sslrootcert=/ca.pem",
        "postgres://u:s@h1:1,h2:2,h3/db?target_session_attrs=read-write&load_balance_hosts=random",
        "postgresql://u@%2Fvar%2Frun%2Fpostgresql/db?application_name=a%20b&options=-csearch_path%3Dtenant",
        "postgresql://u:p?s#s@h/db?connect_timeout=3",
        "postgresql:///db?host=/run/pg&port=5433",
        "postgresql:///?service=shop&passfile=/etc/pgpass",
        "postgresql://[::1]:5433/d%C3%A4ta?password=secret",
        "postgresql://h/db?ssl=true&sslmode=require",
        "postgresql://",
    ],
)
def test_a_postgresql_url_means_what_it_means_to_libpq(url):
    parameters = connection_parameters(parse_url(url))
    theirs = conninfo_to_dict(url.replace("postgres://", "postgresql://"))
    assert {name: str(value) for name, value in parameters.items()} == theirs
    engine = session.connect(url.replace("postgresql://", "postgresql+asyncpg://"))
    given = engine.dialect.create_connect_args(engine.url)[1]
    assert {name: str(given[name]) for name in given if name in theirs} == {
        name: value for name, value in theirs.items() if name in given
    }


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql://u:{}@h/db?schema=public", r"the option 'schema', .* write options=-csearch_path%3DNAME"),
        ("postgresql://u:{}@h/db?pgbouncer=true", "the option 'pgbouncer', .* leave it out"),
        ("postgresql+asyncpg://u:{}@h/db?ssl=require", "the option 'ssl', .* sslmode=require"),
        ("postgresql://u:{}@h/db?connection_limit=1", "the option 'connection_limit', .* leave it out"),
        ("postgresql://u:{}@h/db?client_encoding=latin1", "a client_encoding other than UTF8"),
        ("postgresql://u:{}@ss@h/db", "percent-encode"),
        ("postgresql://u:{}/ss@h/db", "percent-encode"),
        ("postgresql://u:/{}?x=1@h/db", "percent-encode"),
        ("postgresql://u:%{}@h/db", "percent-encode"),
        ("postgresql://u:{}:x/db", "port"),
        ("postgresql://u:pa {}@h/db", "percent-encode"),
        ("sqlite:///{}.db?mode=ro", "takes no options"),
        ("sqlite://me:{}@host/x.db", "no host"),
        ("sqlite+pysqlcipher://:{}@/x.db", "pysqlcipher"),
        ("mysql://me:{}@host/db", "SQLite and PostgreSQL"),
        ("{}", "is not one"),
    ],
)
def test_a_url_that_is_not_understood_is_refused_without_its_secret(url, message):
    with pytest.raises(DbError, match=message) as refused:
        session.connect(url.format("hunter2hunter2"))
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("name", ["C# work", "50% done", "a?b", "a b", "ä%41", "x;y"])
def test_a_sqlite_file_has_any_name(tmp_path, name):
    path = tmp_path / name / f"{name}.db"
    path.parent.mkdir()
    ledger = session.connect(sqlite_url(path))
    runner.upgrade(ledger)
    assert list_jobs(ledger) == []
    ledger.dispose()
    assert path.is_file()
    again = session.connect(session.redacted(ledger))
    assert list_jobs(again) == []
    again.dispose()


@pytest.fixture
def database(postgres_url):
    """Make a database of this encoding on the real server; its URL."""
    made = []

    def make(encoding):
        name = f"db_{encoding.lower()}"
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0")
        made.append(name)
        return sa.make_url(postgres_url).set(database=name).render_as_string(hide_password=False)

    yield make
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        for name in made:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_that_cannot_store_every_text_is_refused_before_it_has_tables(database, encoding):
    ledger = session.connect(database(encoding))
    for step in (runner.upgrade, session.check_schema):
        with pytest.raises(DbError, match=rf"the encoding {encoding}, .*createdb --encoding=UTF8"):
            step(ledger)
    with ledger.connect() as connection:
        assert sa.inspect(connection).get_table_names() == []
    ledger.dispose()


def test_the_client_speaks_utf8_whatever_the_environment_says(postgres_url, monkeypatch):
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    ledger = session.connect(postgres_url)
    with session.reading(ledger) as connection:
        assert connection.exec_driver_sql("SHOW client_encoding").scalar_one() == "UTF8"
    ledger.dispose()


def refusal(url, kind=DbError):
    ledger = session.connect(url)
    with pytest.raises(kind) as refused:
        list_jobs(ledger)
    ledger.dispose()
    return str(refused.value)


def test_what_sqlite_leaves_unsaid_is_said(tmp_path):
    (tmp_path / "text.db").write_text("no database, but long enough to be looked at as one" * 4)
    assert "is no SQLite database, or a broken one" in refusal(sqlite_url(tmp_path / "text.db"))
    closed = DatabaseUnreachableError
    assert f"there is no folder {tmp_path / 'none'}" in refusal(sqlite_url(tmp_path / "none" / "x.db"), closed)
    assert "it is a folder" in refusal(sqlite_url(tmp_path), closed)
    assert f"{tmp_path / 'text.db'} is no folder" in refusal(sqlite_url(tmp_path / "text.db" / "x.db"), closed)


def test_a_full_disk_is_called_that(ledger):
    if ledger.dialect.name != "sqlite":
        pytest.skip("SQLite's own limit of pages stands for the disk")

    def fill(connection, _):
        connection.execute("PRAGMA max_page_count = 30")

    sa.event.listen(ledger, "connect", fill)
    ledger.dispose()
    with pytest.raises(DatabaseUnreachableError, match="the disk is full; make room"), session.writing(ledger) as wide:
        wide.exec_driver_sql("CREATE TABLE filler (text)")
        for _ in range(100):
            wide.exec_driver_sql("INSERT INTO filler VALUES (zeroblob(100000))")
    sa.event.remove(ledger, "connect", fill)


def test_what_postgresql_refuses_is_said_with_the_remedy(postgres_url):
    url = sa.make_url(postgres_url)
    assert 'database "nowhere" does not exist; make it' in refusal(
        url.set(database="nowhere").render_as_string(hide_password=False), DatabaseUnreachableError
    )
    separator = "&" if "?" in postgres_url else "?"
    ledger = session.connect(f"{postgres_url}{separator}options=-csearch_path%3Dnowhere")
    with pytest.raises(DbError, match=r"no schema to write to: .*; make the one that search_path names"):
        runner.upgrade(ledger)
    ledger.dispose()
    read_only = session.connect(f"{postgres_url}{separator}options=-cdefault_transaction_read_only%3Don")
    with (
        pytest.raises(DbError, match=r"is read-only: .*target_session_attrs=read-write"),
        session.writing(read_only) as c,
    ):
        c.exec_driver_sql("CREATE TABLE x (y int)")
    read_only.dispose()
