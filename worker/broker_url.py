"""Broker URLs: taken apart once, as redis-py and kombu do, and put together for kombu; the rest is refused by name."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit

FORM = "use redis://:PASSWORD@HOST:6379/0, rediss:// (TLS), unix:///PATH or sentinel://HOST:26379/0?master_name=NAME"
ESCAPED = "percent-encode what is special in its parts: %40 for @, %2F for /, %23 for #, %25 for %, %3B for ;"
SCHEMES = {"redis": "redis", "rediss": "rediss", "unix": "socket", "redis+socket": "socket", "sentinel": "sentinel"}
SCHEME = re.compile(f"({'|'.join(map(re.escape, SCHEMES))})://", re.IGNORECASE)
VALKEY = {"valkey": "redis", "valkeys": "rediss"}
TLS_OPTIONS = {
    f"ssl_{name}" for name in ("cert_reqs", "ca_certs", "ca_path", "certfile", "keyfile", "password", "check_hostname")
}
SENTINEL_OPTIONS = {"master_name", "sentinel_username", "sentinel_password"}
OPTIONS = {
    "redis": {"db"},
    "rediss": {"db"} | TLS_OPTIONS,
    "socket": {"db", "virtual_host", "username", "password"},
    "sentinel": {"db"} | SENTINEL_OPTIONS,
}
CERT_REQS = ("required", "optional", "none")
SENTINEL_PORT = 26379
SENTINEL_SECONDS = 5
"""For a Sentinel to connect or answer."""


class BrokerUrlError(ValueError):
    """A broker URL that cannot be used; the message is one line without its password."""


@dataclass(frozen=True)
class Broker:
    """How kombu reaches Redis."""

    url: str = field(repr=False)
    """In kombu's form; may hold a password."""
    options: dict[str, Any] = field(default_factory=dict, repr=False)
    """Transport options beside those of every broker."""


def socket_broker(path: Path) -> Broker:
    """The Redis of a unix socket, whatever signs are in its name."""
    return Broker(f"redis+socket://{quote(str(path))}")


def parse_broker_url(text: str) -> Broker:
    """Take a broker URL apart; several servers, of which one is used, stand with semicolons between them.

    Raises:
        BrokerUrlError: it is no URL of Redis, or has what is not understood.
    """
    if not all(SCHEME.match(part) for part in text.split(";")[1:]):
        raise BrokerUrlError(f"cannot be taken apart; {ESCAPED}")
    servers = [_Server.parse(part) for part in text.split(";")]
    kinds = {server.kind for server in servers}
    if len(kinds) > 1 or (len(servers) > 1 and kinds == {"socket"}):
        raise BrokerUrlError("several servers must all be redis://, all rediss:// or all sentinel://")
    url = ";".join(server.url() for server in servers)
    return Broker(url, _sentinel_options(servers) if kinds == {"sentinel"} else {})


@dataclass(frozen=True)
class _Server:
    """One server of a broker URL."""

    kind: str
    username: str
    password: str
    host: str
    port: int | None
    path: str
    """Of a socket."""
    db: int
    options: dict[str, str]

    @classmethod
    def parse(cls, text: str) -> "_Server":
        kind = _kind(text)
        split, port = _split(text)
        options = _options(split, kind)
        if kind == "socket" and (split.hostname or not split.path.strip("/")):
            raise BrokerUrlError("the path of a socket begins at the root: unix:///run/redis.sock")
        db = options.pop("db", None) or options.pop("virtual_host", None)
        return cls(
            kind,
            unquote(split.username or "") or options.pop("username", ""),
            unquote(split.password or "") or options.pop("password", ""),
            split.hostname or "",
            port,
            unquote(split.path) if kind == "socket" else "",
            _db(db or ("" if kind == "socket" else unquote(split.path))),
            options,
        )

    def url(self) -> str:
        """In kombu's form."""
        user = f"{quote(self.username, safe='')}:{quote(self.password, safe='')}@"
        user = user if self.username or self.password else ""
        if self.kind == "socket":
            return f"redis+socket://{user}{quote(self.path)}?virtual_host={self.db}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = self.port or (SENTINEL_PORT if self.kind == "sentinel" else None)
        options = self.options if self.kind == "rediss" else {}
        query = f"?{urlencode(options)}" if options else ""
        return f"{self.kind}://{user}{host}{f':{port}' if port else ''}/{self.db}{query}"


def _kind(text: str) -> str:
    found = re.match(r"([a-z][a-z0-9+]*)://", text, re.IGNORECASE)
    scheme = found[1].lower() if found else ""
    if scheme in VALKEY:
        raise BrokerUrlError(f"write {VALKEY[scheme]}:// for {scheme}://: Valkey speaks the same protocol")
    if scheme not in SCHEMES:
        raise BrokerUrlError(f"{scheme}:// is no broker of genarm's; {FORM}" if scheme else f"is no URL; {FORM}")
    return SCHEMES[scheme]


def _split(text: str) -> tuple[SplitResult, int | None]:
    try:
        split = urlsplit(text)
        port = split.port
        host = split.hostname or ""
    except ValueError:
        raise BrokerUrlError(f"has no usable port or host; {ESCAPED}") from None
    if "#" in text or not re.fullmatch(r"[\w.:-]*", host) or "@" in split.path + split.query or re.search(r"\s", text):
        raise BrokerUrlError(f"cannot be taken apart; {ESCAPED}")
    return split, port


def _options(split: SplitResult, kind: str) -> dict[str, str]:
    """The options behind `?`, those of TLS complete: without being asked, the library checks no certificate."""
    options = dict(parse_qsl(split.query, keep_blank_values=True))
    for name in options:
        if name in OPTIONS[kind]:
            continue
        if name in TLS_OPTIONS:
            raise BrokerUrlError(f"the option {name!r} needs TLS: rediss://")
        known = ", ".join(sorted(OPTIONS[kind]))
        shown = repr(name) if re.fullmatch("[a-z_]{1,40}", name) else "in it"
        raise BrokerUrlError(f"the option {shown} is not known; leave it out (known: {known})")
    options = {name: value for name, value in options.items() if value}
    if kind == "rediss":
        options["ssl_cert_reqs"] = options.pop("ssl_cert_reqs", "required").lower().removeprefix("cert_")
        if options["ssl_cert_reqs"] not in CERT_REQS:
            raise BrokerUrlError(f"ssl_cert_reqs is one of {', '.join(CERT_REQS)}")
        if options.get("ssl_check_hostname", "true").lower() not in {"true", "false"}:
            raise BrokerUrlError("ssl_check_hostname is true or false")
    return options


def _db(text: str) -> int:
    number = text.strip("/") or "0"
    if not re.fullmatch("[0-9]{1,9}", number):
        raise BrokerUrlError("the database of Redis is a number, as in redis://HOST:6379/0")
    return int(number)


def _sentinel_options(servers: list[_Server]) -> dict[str, Any]:
    """What kombu wants to know of Sentinel apart from the URL."""
    options = {name: value for server in servers for name, value in server.options.items()}
    if "master_name" not in options:
        raise BrokerUrlError("a sentinel:// URL names its master: sentinel://HOST:26379/0?master_name=NAME")
    if len({(server.username, server.password, server.db) for server in servers}) > 1:
        raise BrokerUrlError("the user, the password and the database are the master's: write them the same for each")
    access = {name: options[f"sentinel_{name}"] for name in ("username", "password") if f"sentinel_{name}" in options}
    timeouts = dict.fromkeys(("socket_timeout", "socket_connect_timeout"), SENTINEL_SECONDS)
    return {"master_name": options["master_name"], "sentinel_kwargs": access | timeouts}
