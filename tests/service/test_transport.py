"""What is let in from the queue: plain calls of the one task, and nothing else."""

import base64
import json

import pytest
from celery import Celery
from hypothesis import given
from hypothesis import strategies as st

from worker import transport
from worker.transport import QUEUE, TASK, is_plain_call


def encoded(call):
    return base64.b64encode(json.dumps(call).encode()).decode()


@pytest.fixture
def genuine(redis_client, broker_url):
    """A message as Celery itself writes it."""
    app = Celery("test", broker=broker_url, set_as_current=False)
    app.send_task(TASK, args=(7,), queue=QUEUE, priority=0)
    return json.loads(redis_client.rpop(QUEUE))


def test_celerys_own_message_is_let_in(genuine):
    assert is_plain_call(genuine)


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("headers", "task", "celery.chord"),
        ("headers", "id", 5),
        ("headers", "eta", "2100-01-01T00:00:00"),
        ("headers", "expires", "x"),
        ("headers", "retries", 3),
        ("headers", "timelimit", 5),
        ("headers", "timelimit", [1, 1]),
        ("headers", "compression", "zlib"),
        ("headers", "stamped_headers", ["a"]),
        ("properties", "delivery_tag", {}),
        ("properties", "delivery_info", 7),
        ("properties", "delivery_info", {}),
        ("properties", "body_encoding", "rot13"),
        (None, "headers", {}),
        (None, "headers", None),
        (None, "properties", {}),
        (None, "content-type", "application/x-python-serialize"),
        (None, "content-encoding", "utf-7"),
        (None, "body", 5),
        (None, "body", "%%%"),
        (None, "body", encoded(5)),
        (None, "body", encoded([[1], {}])),
        (None, "body", encoded([1, 2, 3])),
        (None, "body", encoded([[1], {}, {"callbacks": [{"task": "celery.chord"}]}])),
        (None, "body", encoded([[1], {}, {"chain": [{"task": "celery.chord"}]}])),
    ],
)
def test_a_message_with_one_wrong_part_is_kept_out(genuine, part, name, value):
    target = genuine if part is None else genuine[part]
    target[name] = value
    assert not is_plain_call(genuine)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_anything_else_is_kept_out_without_an_error(message):
    assert not is_plain_call(message)


def test_queue_names_agree():
    assert transport.TASK in repr(transport._Headers.model_fields["task"].annotation)
