"""Jobs and rows that ask for too much, or that carry the code of another language."""

import io
import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import sqlalchemy as sa

import db.jobs
from db import session
from db.datasets import DatasetSource
from db.errors import DatasetError, JobNotFoundError
from db.points import sweep_points
from db.results import input_rows
from db.session import writing
from db.spans import all_spans
from db.storable import storable
from models.errors import ModelsError
from tests.service.test_shards import shard_ids_of
from worker.submission import Submission, submit

SQL = "'; DROP TABLE jobs; --"
HTML = "<script>alert('x')</script>"


@pytest.fixture
def submit_file(ledger, settings, register, tmp_path):
    """Submit a file of rows as the command line does."""
    home = register()

    def submit_rows(rows, *, limits=(), **spec):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        fields = {"base": "tiny", **spec}
        submission = Submission(DatasetSource(str(path)), fields, spec.pop("name", None), 5, None)
        return submit(ledger, settings.model_copy(update={"home": home, **dict(limits)}), submission)

    return submit_rows


def nothing_is_stored(ledger):
    with ledger.connect() as connection:
        counts = [
            connection.execute(sa.text(f"SELECT count(*) FROM {t}")).scalar() for t in ("jobs", "requests", "shards")
        ]
    return counts == [0, 0, 0]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"samples": 10**9}, "samples"),
        ({"samples": 257}, "samples: 257 is more than the 256"),
        ({"sampling": {"max_new_tokens": 10**9}}, "max_new_tokens"),
        ({"sampling": {"max_new_tokens": 40_000}}, "more than the 32768"),
        ({"arms": [{"name": "a", "ref": "nice", "weight": float("nan")}]}, "weight"),
        ({"arms": [{"name": "a", "ref": "nice", "weight": float("inf")}]}, "weight"),
        ({"sampling": {"temperature": float("nan")}}, "temperature"),
        ({"system": "x" * 2**21}, "system"),
        ({"base": "/etc/passwd"}, "not in the registry"),
        ({"base": "\ud800"}, "surrogate"),
        ({"arms": [{"name": "a", "ref": "nice"}] * 65}, "64"),
        ({"trust_remote_code": True}, "trust_remote_code"),
        ({"__class__": "os.system"}, "__class__"),
    ],
)
def test_a_spec_that_asks_for_too_much_is_refused_and_nothing_is_stored(submit_file, ledger, spec, message):
    with pytest.raises(ModelsError, match=message):
        submit_file([{"prompt": "x"}], **spec)
    assert nothing_is_stored(ledger)


def test_a_prompt_of_100_megabytes_is_refused_and_nothing_is_stored(submit_file, ledger):
    with pytest.raises(DatasetError, match=r"line 2: is longer than 64 MiB"):
        submit_file([{"prompt": "small"}, {"prompt": "x" * 100_000_000}])
    with pytest.raises(DatasetError, match=r"rows\.jsonl, line 2: has 200000.* bytes .*GENARM_MAX_ROW_BYTES"):
        submit_file([{"prompt": "small"}, {"prompt": "x" * 20_000_000}])
    assert nothing_is_stored(ledger)


def test_a_row_of_a_sweep_that_is_too_large_is_named_by_its_line(settings, ledger, register, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "x"}\n\n{"prompt": "' + "x" * 900 + '"}\n')
    spec = {"base": "tiny", "arms": [{"name": "a", "ref": "nice"}]}
    submission = Submission(DatasetSource(str(path)), spec, None, 5, None, sweep={"a": [0.0, 1.0, 2.0]})
    limited = settings.model_copy(update={"home": register(), "max_row_bytes": 500})
    with pytest.raises(DatasetError, match=r"rows\.jsonl, line 3: has 9\d\d bytes"):
        submit(ledger, limited, submission)
    with pytest.raises(DatasetError, match=r"rows\.jsonl, line 3: there are more than the 5 rows .* a sweep"):
        submit(ledger, limited.model_copy(update={"max_row_bytes": 5000, "max_job_rows": 5}), submission)
    assert nothing_is_stored(ledger)


def test_too_many_rows_are_refused_and_nothing_is_stored(submit_file, ledger):
    with pytest.raises(DatasetError, match=r"more than the 3 rows.*GENARM_MAX_JOB_ROWS"):
        submit_file([{"prompt": "x"}] * 4, limits={"max_job_rows": 3})
    assert nothing_is_stored(ledger)
    assert submit_file([{"prompt": "x"}] * 3, limits={"max_job_rows": 3}).total_rows == 3


class WatchedPipe(io.RawIOBase):
    """A pipe whose other end writes to the ledger before it says more."""

    def __init__(self, ledger, text):
        self._ledger, self._bytes = ledger, io.BytesIO(text.encode())

    def readable(self):
        return True

    def readinto(self, buffer):
        with writing(self._ledger) as connection:
            connection.execute(sa.text("UPDATE jobs SET priority = 1"))
        return self._bytes.readinto(buffer)


def test_a_slow_pipe_keeps_no_worker_waiting(settings, ledger, ledger_url, register, monkeypatch):
    monkeypatch.setattr(session, "BUSY_SECONDS", 0)
    other = session.connect(ledger_url)
    pipe = io.BufferedReader(WatchedPipe(other, '{"prompt": "x"}\n' * 5000))
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=pipe))
    submission = Submission(DatasetSource("-"), {"base": "tiny"}, None, 5, None)
    assert submit(ledger, settings.model_copy(update={"home": register()}), submission).total_rows == 5000
    other.dispose()


def test_rows_over_a_limit_fail_alone_before_the_engine_sees_them(submit, service, ledger, run_shards, results):
    big = "é" * (service.settings.max_prompt_bytes // 2 + 1)
    rows = [
        {"prompt": big},
        {"messages": [{"role": "user", "content": big}]},
        {"prompt": "x", "sampling": {"max_new_tokens": 999_999}},
        {"prompt": "x", "weights": {"a": 1e999}},
        {"prompt": "fine"},
    ]
    job_id = submit(*rows[:3], rows[4])
    run_shards(*shard_ids_of(ledger))
    codes = [row["error"] and row["error"]["code"] for row in results(job_id)]
    assert codes == ["prompt_too_large", "prompt_too_large", "invalid_sampling", None]
    assert [row.prompt for row in service.engines.engine.submitted] == ["fine"]


def test_a_forged_job_in_the_ledger_fails_without_its_models_being_opened(
    submit, service, ledger, run_shards, job, register
):
    service.settings.home.mkdir(exist_ok=True)
    (service.settings.home / "models.toml").write_text('[models.only]\nkind = "base"\npath = "x"')
    forged = [
        submit("x", base="/etc"),
        submit("x", base="http://10.0.0.1/model"),
        submit("x", base="only", samples=999),
    ]
    run_shards(*shard_ids_of(ledger))
    assert [job(one).error_code for one in forged] == ["model_not_allowed", "model_not_allowed", "invalid_spec"]
    assert service.engines.engine.loads == []


def test_code_in_prompts_and_ids_comes_out_as_it_went_in(submit, service, ledger, run_shards, results, job):
    rows = [
        {"id": text, "prompt": text, text: text} for text in (SQL, HTML, '"; $(touch x)', "{{7*7}}", "%s%n\\", "\x00")
    ]
    job_id = submit(*rows)
    run_shards(*shard_ids_of(ledger))
    out = results(job_id)
    kept = [row["id"].replace("\x00", "\ufffd") for row in rows]
    assert [row["id"] for row in out] == kept
    assert [row["completion"] for row in out] == [text[::-1] for text in kept]
    assert all(row[text] == text for row, text in zip(out, kept, strict=True))
    assert job(job_id).status == "completed"


@pytest.mark.parametrize("text", ["\x00", "half \ud800", "\udc00 the other", "\\u0000 \x00"])
def test_a_row_that_no_database_can_hold_spoils_no_query(submit, ledger, run_shards, job, text):
    row = {"prompt": f"p {text}", "label": {text: [text]}, "weights": {"a": 1.0}, "emoji": "🎉"}
    job_id = submit(row, {"prompt": "q"})
    run_shards(*shard_ids_of(ledger))
    with ledger.connect() as connection:
        found = connection.execute(sa.text("""SELECT "row" ->> 'prompt', "row" ->> 'emoji', results.* FROM results"""))
        stored = storable(text)
        assert found.fetchone()[:2] == (f"p {stored}", "🎉")
    (point,) = sweep_points(ledger, replace(job(job_id), sweep={"a": [1.0]}))
    assert point.weights == {"a": 1.0}
    (span,) = all_spans(ledger, job_id)
    assert input_rows(ledger, job_id, span)[0][1]["label"] == {stored: [stored]}


@pytest.mark.parametrize(
    "job_id", [SQL, "job-%", "job-_", "' OR '1'='1", "job-\x00", "\ud800", "", "job-' UNION SELECT"]
)
def test_an_id_is_never_read_as_sql(submit, ledger, job_id):
    submit("one")
    with pytest.raises(JobNotFoundError):
        db.jobs.find(ledger, job_id)
