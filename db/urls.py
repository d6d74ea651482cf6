"""Database URLs: taken apart once, as SQLAlchemy and libpq do; what is not understood is refused by name."""

import re
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import parse_qsl

import sqlalchemy as sa

from db.errors import DbError

DatabaseUrl: TypeAlias = sa.URL
"""A database URL in its parts, as SQLAlchemy has it."""
SQLITE_DRIVERS = ("sqlite", "sqlite+pysqlite", "sqlite+aiosqlite")
FORM = "use sqlite:///PATH or postgresql://USER:PASSWORD@HOST/NAME"
MEMORY = "a SQLite database must be a file, which workers can share: sqlite:///PATH"
ESCAPED = "percent-encode what is special in its parts: %40 for @, %2F for /, %23 for #, %25 for %, %20 for a space"
SCHEME = re.compile(r"([a-z][a-z0-9]*)(\+[a-z0-9_]+)?://", re.IGNORECASE)
PORTS = re.compile(r"([0-9]{1,5})?(,([0-9]{1,5})?)*")
LEAVE_OUT = "leave it out"
REMEDIES = {
    "schema": "write options=-csearch_path%3DNAME",
    "currentSchema": "write options=-csearch_path%3DNAME",
    "ssl": "write sslmode=require, or sslmode=verify-full",
    "sslaccept": "write sslmode=require, or sslmode=verify-full",
    "sslidentity": "write sslcert=FILE and sslkey=FILE",
    "server_settings": "write options=-cNAME%3DVALUE",
    "timeout": "write connect_timeout=SECONDS",
    "pgbouncer": f"{LEAVE_OUT}: genarm prepares no statements",
}
"""For options that Prisma, JDBC and asyncpg know and libpq does not."""


def parse_url(url: str) -> DatabaseUrl:
    """A database URL as SQLAlchemy has it.

    Args:
        url: `sqlite:///PATH`, or a URI of libpq, `postgresql://USER:PASSWORD@HOST/NAME?sslmode=verify-full`; the name
            of a driver (`postgresql+asyncpg://`) changes nothing.

    Raises:
        DbError: it is none, or has what is not understood; the message holds no password.
    """
    scheme = SCHEME.match(url)
    if scheme is None:
        raise DbError(f"the database URL is not one; {FORM}")
    backend = scheme[1].lower()
    if backend == "sqlite":
        return _sqlite_url(url)
    if backend in {"postgres", "postgresql"}:
        return _postgresql_url(url[scheme.end() :])
    raise DbError(f"the database is {backend!r}; genarm knows SQLite and PostgreSQL")


def sqlite_url(path: Path) -> DatabaseUrl:
    """The URL of a SQLite file, whatever signs are in its name."""
    return sa.URL.create("sqlite", database=str(path))


def _sqlite_url(url: str) -> DatabaseUrl:
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        raise DbError(f"the database URL is not one; {FORM}") from None
    if parsed.drivername not in SQLITE_DRIVERS:
        raise DbError(f"the database is {parsed.drivername!r}, whose files genarm cannot read; use sqlite:///PATH")
    if parsed.host or parsed.username or parsed.password or parsed.port:
        raise DbError("a SQLite URL has no host and no user; a path from the root has four slashes: sqlite:////PATH")
    if parsed.query:
        raise DbError("a SQLite URL takes no options after a '?'; where the sign is in the file's name, write %3F")
    if not parsed.database or parsed.database == ":memory:":
        raise DbError(MEMORY)
    return sqlite_url(Path(parsed.database))


def _postgresql_url(rest: str) -> DatabaseUrl:
    """The URL from what libpq reads in it; `rest` follows the scheme."""
    _require_escaped(rest)
    parameters = _read_by_libpq(rest)
    host, port = parameters.pop("host", None), parameters.pop("port", None)
    if not PORTS.fullmatch(port or ""):
        raise DbError(f"the database URL has a port that is no number; {ESCAPED}")
    if parameters.get("client_encoding", "utf8").lower().replace("-", "") not in {"utf8", "auto", "unicode"}:
        raise DbError("the database URL has a client_encoding other than UTF8; leave it out")
    is_plain = host is not None and re.fullmatch(r"[^/,@]+", host) and "," not in (port or "")
    elsewhere = {} if is_plain else {name: value for name, value in (("host", host), ("port", port)) if value}
    return sa.URL.create(
        "postgresql+psycopg",
        username=parameters.pop("user", None),
        password=parameters.pop("password", None),
        host=host if is_plain else None,
        port=int(port) if is_plain and port else None,
        database=parameters.pop("dbname", None),
        query=parameters | elsewhere,
    )


def _require_escaped(rest: str) -> None:
    """Refuse an `@` or `/` inside of a password, a part of which would end up in another place, and in messages."""
    if rest.count("@") > 1 or "@" in rest.partition("/")[2]:
        raise DbError(f"the database URL cannot be taken apart; {ESCAPED}")


def _read_by_libpq(rest: str) -> dict[str, Any]:
    try:
        import psycopg
        from psycopg.conninfo import conninfo_to_dict
    except ImportError:
        raise DbError("PostgreSQL needs its driver: pip install 'genarm[postgres]'") from None
    known = {option.keyword.decode() for option in psycopg.pq.Conninfo.get_defaults()}
    for name, value in parse_qsl(_options(rest), keep_blank_values=True):
        if name not in known and (name, value) != ("ssl", "true") and re.fullmatch("[A-Za-z_-]{1,40}", name):
            remedy = REMEDIES.get(name, LEAVE_OUT)
            raise DbError(f"the database URL has the option {name!r}, which libpq does not know; {remedy}")
    try:
        return conninfo_to_dict(f"postgresql://{rest}")
    except (psycopg.Error, UnicodeError):  # their texts may quote the password
        raise DbError(f"the database URL cannot be taken apart; {ESCAPED}") from None


def _options(rest: str) -> str:
    """What follows the `?` that begins the options; one inside of a password does not."""
    authority, slash, path = rest.partition("/")
    return (path if slash else authority.rpartition("@")[2]).partition("?")[2]


def connection_parameters(url: DatabaseUrl) -> dict[str, Any]:
    """What libpq is given for the URL of a PostgreSQL."""
    parts = {"user": url.username, "password": url.password, "host": url.host, "port": url.port, "dbname": url.database}
    return {name: value for name, value in parts.items() if value is not None} | dict(url.query)


def redacted_url(url: DatabaseUrl) -> str:
    """A URL for people, without its secrets."""
    secret = {name: "***" for name in url.query if "password" in name or "secret" in name or name.endswith("_key")}
    shown = url.set(drivername=url.get_backend_name(), query={**url.query, **secret})
    return shown.render_as_string(hide_password=True)
