"""How a job is followed in a log, without processes."""

from types import SimpleNamespace

from db.jobs import JobProgress
from db.tables import JobStatus
from worker.cli.console import job_view


def progress(rows):
    job = SimpleNamespace(status=JobStatus.IN_PROGRESS, total_rows=40)
    return JobProgress(
        job=job,
        completed_rows=rows - 1 if rows else 0,
        failed_rows=1 if rows else 0,
        pending_rows=40 - rows,
        open_shards=1,
        leased_shards=1,
        workers=1,
        generated_tokens=rows * 10,
        seconds=float(rows),
        rows_per_second=None,
        eta_seconds=None,
        tokens_per_second=None,
    )


def test_a_log_gets_a_line_at_each_tenth_of_the_rows_and_none_for_the_end(capsys):
    with job_view("job-1") as view:
        for rows in [0, 0, 3, 4, 5, 5, 21, 23, 40]:
            view.show(progress(rows))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" · ")[0] for line in lines] == ["job-1: 4 of 40 rows", "job-1: 21 of 40 rows"]
    assert lines[1] == "job-1: 21 of 40 rows · in progress · 10 tokens/s · 1 worker · 1 failed · 21 s so far"
