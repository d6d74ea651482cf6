"""The command line with any arguments and any files: an exit code, one line of error, and never half a job."""

import json

import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from hypothesis import example, given
from hypothesis import strategies as st

import db.jobs
import db.results
from db.datasets import DatasetSource, open_dataset
from db.errors import DatasetError
from db.jobs import NewJob
from tests.fuzz.inputs import any_text, count, files, inputs
from worker.admission import admit_rows
from worker.cli import main
from worker.cli.errors import Exit
from worker.settings import Settings

COMMANDS = [
    ["job", "submit"], ["job", "list"], ["job", "show"], ["job", "watch"], ["job", "cancel"], ["job", "retry"],
    ["job", "export"], ["job", "delete"], ["job"], ["db", "upgrade"], ["db", "current"], ["db"], ["arm"],
    ["arm", "train"], ["doctor"], [],
]  # fmt: skip
WORDS = [
    "--base", "--arm", "--samples", "-n", "--temperature", "--stop", "--seed", "--format", "csv", "--limit", "-o",
    "--json", "--help", "--yes", "--priority", "--shard-rows", "--arm-template", "a=b", "rows.jsonl", "tiny", "nice",
    "0.5", "job-1", "--",
]  # fmt: skip
values = any_text.filter(lambda text: text != "-" and "\x00" not in text)  # argv cannot hold NUL; - waits for stdin
arguments = st.tuples(st.sampled_from(COMMANDS), st.lists(st.sampled_from(WORDS) | values, max_size=6))
OPTIONS = [
    "--arm=nice", "--samples", "--max-new-tokens", "--temperature", "--top-p", "--top-k", "--min-p", "--stop", "--seed",
    "--system", "--dtype", "--format", "--prompt-column", "--id-column", "--name", "--priority", "--shard-rows",
]  # fmt: skip
submissions = st.lists(st.tuples(st.sampled_from(OPTIONS), st.sampled_from(["1", "0.5", "0"]) | values), max_size=3)


@pytest.fixture
def invoke(tmp_path_factory, home):
    """Run genarm in this process, in a folder with one dataset; it must end with an exit code of its own."""
    folder = tmp_path_factory.mktemp("commands")
    (folder / "rows.jsonl").write_text('{"prompt": "Hi", "n": 1}\n')

    def run(words):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            patch.setenv("GENARM_HOME", str(home))
            result = CliRunner().invoke(main, words)
        assert result.exit_code in set(Exit), (words, result.output)
        assert result.exception is None or isinstance(result.exception, SystemExit), (words, result.exception)
        assert "Traceback" not in result.output
        return result

    return run


@inputs(0.05)
@given(arguments=arguments)
def test_arguments(invoke, arguments):
    count()
    command, words = arguments
    invoke([*command, *words])


@inputs(0.02)
@given(options=submissions)
def test_submissions(invoke, monkeypatch, home, options):
    count()
    monkeypatch.setattr("worker.submission.announce", lambda ledger, settings: None)
    done = invoke(["job", "submit", "rows.jsonl", "--base", "tiny", *(word for pair in options for word in pair)])
    ids = done.stdout.split()
    assert len(ids) == (done.exit_code == 0)
    for job_id in ids:
        invoke(["job", "cancel", job_id])
        assert invoke(["job", "delete", job_id, "--yes"]).exit_code == 0
    assert invoke(["job", "list", "--json"]).stdout == ""


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
@inputs(0.0085)
@given(content=files)
@example(content=b'{"prompt": 1e999}')
@example(content=b'{"\\r": null}')
def test_datasets_are_stored_whole_or_not_at_all(ledger, tmp_path_factory, suffix, content):
    count()
    path = tmp_path_factory.getbasetemp() / f"rows.{suffix}"
    path.write_bytes(content)
    job = NewJob(spec={"base": "x"}, samples=1, shard_rows=2)
    try:
        rows = open_dataset(DatasetSource(str(path)))
        submitted = db.jobs.submit(ledger, job, admit_rows(rows, Settings()))
    except DatasetError as error:
        assert len(str(error).splitlines()) <= 1
        assert stored(ledger) == (0, 0)
        return
    assert stored(ledger) == (1, submitted.total_rows)
    db.jobs.fail_job(ledger, submitted.id, "code", "message")
    out = list(db.results.export_rows(ledger, submitted.id))
    assert len(out) == submitted.total_rows
    assert all(json.dumps(row) for row in out)
    db.jobs.delete(ledger, submitted.id)


def stored(ledger):
    with ledger.connect() as connection:
        return tuple(
            connection.execute(sa.text(f"SELECT count(*) FROM {table}")).scalar() for table in ("jobs", "requests")
        )
