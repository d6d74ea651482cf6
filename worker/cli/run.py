"""`genarm run`: from a dataset to a file of results in one command."""

from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any

import click

import db.jobs
from db.errors import DatasetError, JobActiveError
from db.exports import OPENAI, check_export
from db.jobs import Job, JobProgress, JobStatus
from db.session import Ledger
from worker.cli import console
from worker.cli.errors import Exit
from worker.cli.export import choice_options, export_of, output_options, write_export
from worker.cli.following import exit_code, follow, summary
from worker.cli.job import facts
from worker.cli.options import generation_options, input_argument, json_option, submission_of
from worker.cli.waiting import announce_if_possible, insist, redis_check
from worker.embedded import redis_server, worker_process
from worker.ledger import open_ledger
from worker.settings import Settings
from worker.submission import Submission, submit

STOPPED = (JobStatus.CANCELLING, JobStatus.CANCELLED, JobStatus.FAILED)


@click.command()
@input_argument
@output_options("--output-format")
@choice_options
@click.option("--device", default=None, help="Where the models run: auto, cpu, cuda or cuda:N.")
@generation_options
@json_option
@click.pass_context
def run(context: click.Context, /, source: str, device: str | None, as_json: bool, **options: Any) -> None:
    """Generate for every row of INPUT and write the results to a file.

    Starts what is missing (the database, Redis, a worker), shows progress, and stops what it started. The rows stay in
    the database. With --key, the same command goes on where it was stopped.

    \b
    Examples:
        genarm run prompts.jsonl -o out.jsonl --base HuggingFaceTB/SmolLM2-135M-Instruct --arm examples/arms/positive 1
        genarm run reviews.csv -o out.parquet --base ./model --template 'Continue: {text}' -n 4 --temperature 0.7
        genarm run batch.jsonl -o results.jsonl --output-format openai --base ./model
    """
    run_to_file(context, submission_of(source, options), options, device, as_json)


def run_to_file(
    context: click.Context, submission: Submission, options: dict[str, Any], device: str | None, as_json: bool
) -> None:
    """Run a job from its dataset to a file of results, and end the command with the exit code that says how it went.

    Raises:
        DatasetError, ModelsError, DbError, ServiceError: what stopped it.
    """
    settings = Settings()
    if device is not None:
        settings = settings.model_copy(update={"device": device})
    wanted = export_of(options)
    if as_json and wanted.target == "-":
        raise DatasetError("--json prints facts on stdout, where the rows go already; give a file with -o")
    spec = submission.spec
    check_export(wanted, [arm["name"] for arm in spec["arms"]], spec.get("samples", 1), bool(submission.sweep))
    if wanted.chosen_format == OPENAI:
        submission = replace(submission, source=replace(submission.source, has_unique_ids=True))
    ledger = open_ledger(settings)
    with console.rows_read(submission.source.name) as on_rows:
        job = submit(ledger, settings, submission, on_rows)
    try:
        progress = _worked_off(ledger, settings, job)
    except KeyboardInterrupt:
        insist(lambda: db.jobs.cancel(ledger, job.id))
        again = "the same command" if job.key else f"genarm job retry {job.id}"
        console.note(f"Cancelled {job.id}; {again} goes on; finished rows: genarm job export {job.id} -o FILE")
        context.exit(Exit.INTERRUPTED)
    write_export(ledger, job, wanted)
    if as_json:
        console.out_json({**facts(progress), "file": wanted.target})
    console.note(summary(progress))
    context.exit(exit_code(progress))


def _worked_off(ledger: Ledger, settings: Settings, job: Job) -> JobProgress:
    """Start what is missing, and follow a job until it has ended."""
    with ExitStack() as stack:
        with console.status("starting Redis and a worker"):
            stack.enter_context(redis_server(settings))
            worker = stack.enter_context(worker_process(settings, tell=console.note))
        look_at_redis = redis_check(settings)

        def check() -> None:
            worker.check()
            look_at_redis()

        if job.status in STOPPED:
            _take_up(ledger, job, check)
        announce_if_possible(ledger, settings, "the worker begins when it finds out by itself.")
        return follow(ledger, job.id, check)


def _take_up(ledger: Ledger, job: Job, check: Callable[[], None]) -> None:
    """Go on with a job that an earlier command with its key left unfinished, once its last shards are handed back."""
    stopped = follow(ledger, job.id, check)
    if stopped.job.status not in STOPPED:
        return
    with suppress(JobActiveError):  # another command with this key was quicker
        count = insist(lambda: db.jobs.retry_failed(ledger, job.id))
        console.note(f"{job.id} was stopped before its end; {count} of {job.total_rows} rows are left")
