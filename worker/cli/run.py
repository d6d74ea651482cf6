"""`genarm run`: a dataset in, results out, in one command."""

from contextlib import ExitStack
from typing import Any

import click

import db.jobs
from db.datasets import write_rows
from db.results import export_rows
from worker.cli import console
from worker.cli.errors import Exit
from worker.cli.following import exit_code, follow, summary
from worker.cli.options import job_options, submission_of
from worker.embedded import redis_server, worker_process
from worker.ledger import open_ledger
from worker.settings import Settings
from worker.submission import announce, submit


@click.command()
@click.argument("source", metavar="INPUT")
@click.option("-o", "--output", required=True, help="Results: .jsonl, .csv, .parquet, or - for JSONL on stdout.")
@click.option("--device", default=None, help="Where the models run: auto, cpu, cuda or cuda:N.")
@job_options
@click.pass_context
def run(context: click.Context, /, source: str, output: str, device: str | None, **options: Any) -> None:
    """Generate for every row of INPUT and write the results to a file.

    Starts what is missing (the database, Redis, a worker), shows progress, and stops what it started. The rows stay in
    the database.

    \b
    Examples:
        genarm run prompts.jsonl -o out.jsonl --base HuggingFaceTB/SmolLM2-135M-Instruct --arm examples/arms/positive 1
        genarm run reviews.csv -o out.parquet --base ./model --prompt-column text -n 4 --temperature 0.7
    """
    settings = Settings()
    if device is not None:
        settings = settings.model_copy(update={"device": device})
    submission = submission_of(source, options)
    ledger = open_ledger(settings)
    with console.status("checking models and storing rows"):
        job = submit(ledger, settings, submission)
    try:
        with ExitStack() as stack:
            with console.status("starting Redis and a worker"):
                stack.enter_context(redis_server(settings))
                worker = stack.enter_context(worker_process(settings))
            announce(ledger, settings)
            progress = follow(ledger, job.id, worker.check)
    except KeyboardInterrupt:
        db.jobs.cancel(ledger, job.id)
        console.note(f"Cancelled {job.id}; finished rows: genarm job export {job.id} -o FILE")
        context.exit(Exit.INTERRUPTED)
    write_rows(export_rows(ledger, job.id), output)
    console.note(summary(progress))
    context.exit(exit_code(progress))
