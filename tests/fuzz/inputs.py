"""What the fuzz suite feeds, and how much of it: 2,000 inputs, the same each time, unless FUZZ_INPUTS says more."""

import json
import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

CUT = 2000
TOTAL = int(os.environ.get("FUZZ_INPUTS", CUT))
fed = 0
"""Inputs fed so far by all tests."""


def inputs(share: float):
    """Give a test its share of all inputs."""
    return settings(
        max_examples=max(1, round(TOTAL * share)),
        derandomize=TOTAL == CUT,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def count() -> None:
    """Count an input."""
    global fed  # noqa: PLW0603 - a tally of the whole run
    fed += 1


NASTY = [
    "", " ", "\x00", "\ud800", "\ufeff", "\u202e", "a" * 5000, "' OR 1=1 --", "<script>", "{{7*7}}", "{% for %}",
    "$(id)",
    "../../etc/passwd", "/etc/passwd", "~root", "file:///etc/passwd", "http://10.0.0.1/x", "NaN", "1e999", "-1",
    "%s%n", "=1+1",
    "tiny", "nice", "org/model", "x.gguf", "models.toml", "__class__", "\n", "\r\n", "🙂", "null", "[]", "{}",
]  # fmt: skip
any_text = st.text(st.characters(exclude_categories=())) | st.sampled_from(NASTY)
numbers = st.integers() | st.floats() | st.sampled_from([0, 1, -1, 2**31, 2**63, 10**400, 1e308, float("nan")])
scalars = st.none() | st.booleans() | numbers | any_text
junk = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(any_text, inner, max_size=4), max_leaves=12
)

SECRET = "hunter2Zq"
"""Planted in passwords; no output may have it."""
signs = st.text(st.sampled_from("@:/?#%;&=[]., +é\\'\"x1"), max_size=4) | st.sampled_from(
    ["%40", "%", "://", "@h/", "?db="]
)
schemes = st.sampled_from(
    ["redis", "rediss", "unix", "redis+socket", "sentinel", "valkey", "amqp", "sqlite", "postgres", "postgresql",
     "postgresql+asyncpg", "mysql", "", "REDIS", "postgresql+x.y"]
)  # fmt: skip
option_names = st.sampled_from(
    ["db", "master_name", "ssl_cert_reqs", "sslmode", "schema", "host", "port", "options", "password", "virtual_host",
     "credential_provider", "transport", "client_encoding", "ssl", "sentinel_password", "service"]
)  # fmt: skip


@st.composite
def urls(draw):
    """A URL with SECRET in its password, of which each part is usual or strange."""
    password = draw(signs) + SECRET + draw(signs)
    host = draw(st.sampled_from(["127.0.0.1:1", "h", "h1:1,h2:2", "[::1]:5", ""]) | signs)
    path = draw(st.sampled_from(["", "/", "/0", "/db", "//tmp/x.db"]) | signs)
    options = draw(st.lists(st.tuples(option_names | signs, signs | st.sampled_from(["1", "require"])), max_size=2))
    query = "&".join("=".join(pair) for pair in options)
    url = f"{draw(schemes)}://{draw(signs)}:{password}@{host}{path}{'?' if query else ''}{query}"
    return url + draw(st.sampled_from(["", "", f";{url}", " ", "\n"]))


SAMPLING = ["max_new_tokens", "temperature", "top_p", "top_k", "min_p", "stop", "seed", "ignore_eos", "surprise"]
samplings = st.dictionaries(st.sampled_from(SAMPLING), junk, max_size=4) | junk
arms = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("name", "ref", "weight", "template", "on_base"), junk) | {"ref": any_text}
)
specs = st.fixed_dictionaries(
    {"base": st.just("tiny") | any_text | junk},
    optional={
        "arms": st.lists(arms, max_size=3) | junk,
        "sampling": samplings,
        "samples": numbers,
        "chat_template_kwargs": st.dictionaries(any_text, junk, max_size=2) | junk,
        **dict.fromkeys(("system", "raw", "dtype", "trust_remote_code", "chat_template", "date"), junk),
    },
)
messages = st.lists(st.fixed_dictionaries({"role": any_text, "content": any_text}) | junk, max_size=3)
rows = st.fixed_dictionaries(
    {},
    optional={
        "prompt": any_text | junk,
        "messages": messages | junk,
        "weights": st.dictionaries(st.just("nice") | any_text, numbers | junk, max_size=2) | junk,
        "sampling": samplings,
        "chat_template_kwargs": st.dictionaries(any_text, junk, max_size=2) | junk,
        "tools": junk,
        "id": junk,
        "custom_id": junk,
        "response": junk,
    },
)
turns = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool"]) | any_text, "content": any_text | junk},
        optional=dict.fromkeys(("tool_calls", "reasoning_content", "name"), junk),
    )
    | junk,
    max_size=4,
)
reply = st.fixed_dictionaries({"role": st.just("assistant"), "content": any_text})
sides = any_text | junk | st.tuples(turns, reply).map(lambda parts: [*parts[0], parts[1]])
texts = st.tuples(*[any_text.map(lambda text: text[:40])] * 2).map(
    lambda two: "\n\nHuman: {}\n\nAssistant: {}".format(*two)
)
pairs = st.fixed_dictionaries(
    {"chosen": sides | texts, "rejected": sides | texts},
    optional={
        "prompt": any_text | turns | junk,
        "messages": turns | junk,
        **dict.fromkeys(("tools", "chat_template_kwargs", "margin", "completion"), junk | any_text),
    },
)
lines = st.one_of(
    rows.map(json.dumps),
    junk.map(json.dumps),
    any_text.map(lambda text: text.replace("\ud800", "?")),
    st.sampled_from(["[" * 3000, '{"prompt": ' + "[" * 900 + "]" * 900 + "}", '{"prompt": NaN}', '{"prompt": 1e999}']),
)


def as_bytes(text: str) -> bytes:
    """UTF-8, where it is text; else bytes that are none."""
    return text.encode("utf-8", "surrogatepass")


files = st.binary(max_size=200) | st.lists(lines, max_size=6).map(lambda some: as_bytes("\n".join(some)))
