"""`genarm job export`: results as files."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeVar

import click

import db.jobs
from db.datasets.writing import is_renamed
from db.errors import DatasetError
from db.exports import Export, Exported, check_export, export
from db.jobs import Job, JobProgress
from db.session import Ledger
from worker.cli import console
from worker.cli.errors import Exit
from worker.cli.following import exit_code, followed_spans
from worker.cli.options import job_id_argument, json_option
from worker.cli.waiting import insist
from worker.ledger import open_ledger
from worker.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])

CHOICE_OPTIONS = (
    click.option("--as", "shape", type=click.Choice(["completions", "preference", "sft"]), default="completions",
                 show_default=True, help="preference: best and worst of the samples; sft: best of n."),
    click.option("--by", metavar="ARM[=W],…", help="Choose by these rewards.  [the weights of the job]"),
    click.option("--per-token", is_flag=True, help="Choose by the mean over the tokens, not by the sum."),
)  # fmt: skip


def output_options(format_name: str) -> Callable[[F], F]:
    """Add the options of a file of results; that of its format has another name where --format is the input's."""
    target = click.option(
        "-o",
        "--output",
        required=True,
        help="Results: .jsonl or .csv (.gz or .zst may follow), .parquet, or - for stdout.",
    )
    file_format = click.option(
        format_name,
        "output_format",
        type=click.Choice(["jsonl", "csv", "parquet", "openai"]),
        help="Of the output, where its name does not tell; openai: batch results, one object per custom_id.",
    )
    return lambda command: file_format(target(command))


def choice_options(command: F) -> F:
    """Add the options that choose among the samples of a row."""
    for option in reversed(CHOICE_OPTIONS):
        command = option(command)
    return command


def export_of(options: dict[str, Any]) -> Export:
    """Take the options of an export out of those of a command.

    Raises:
        DatasetError: --by cannot be read.
    """
    target, file_format = options.pop("output"), options.pop("output_format")
    shape, by, per_token = options.pop("shape", "completions"), options.pop("by", None), options.pop("per_token", False)
    if shape == "completions" and (by or per_token):
        raise DatasetError("--by and --per-token choose among samples; give --as preference or --as sft")
    return Export(target, file_format, shape, None if by is None else _weights(by), per_token)


def _weights(text: str) -> dict[str, float]:
    weights = {}
    for part in text.split(","):
        name, _, weight = part.partition("=")
        try:
            weights[name] = float(weight or 1)
        except ValueError:
            raise DatasetError(f"--by {text}: write ARM or ARM=NUMBER, with commas between them") from None
    return weights


def write_export(ledger: Ledger, job: Job, wanted: Export, is_followed: bool = False) -> Exported:
    """Write a job's results with a progress bar, and say how many; a file is begun anew after an outage."""
    total = job.total_rows * (job.samples if wanted.shape == "completions" and wanted.file_format != "openai" else 1)

    def write() -> Exported:
        spans = followed_spans(ledger, job.id) if is_followed else None
        with console.count_bar(f"writing {wanted.target}", total) as on_rows:
            return export(ledger, job, wanted, spans, on_rows)

    exported = insist(write) if is_renamed(wanted.target) else write()
    skipped = f", {exported.skipped} with nothing to choose left out" if exported.skipped else ""
    console.note(f"{exported.rows} rows{skipped}")
    return exported


@click.command("export")
@job_id_argument
@output_options("--format")
@choice_options
@click.option("--follow", is_flag=True, help="Go on until the job has ended, writing rows as they are finished.")
@json_option
@click.pass_context
def export_job(context: click.Context, /, job_id: str, follow: bool, as_json: bool, **options: Any) -> None:
    """Write the results of a job to a file, in the order of its input. The file appears when it is whole.

    \b
    Examples:
        genarm job export job-1m86dg0 -o out.parquet
        genarm job export job-1m86dg0 -o pairs.jsonl --as preference --by helpful=1,harmless=0.5
        genarm job export job-1m86dg0 -o - --follow
        genarm job export job-1m86dg0 -o results.jsonl --format openai
    """
    ledger = open_ledger(Settings())
    job = db.jobs.find(ledger, job_id)
    wanted = export_of(options)
    if as_json and wanted.target == "-":
        raise DatasetError("--json prints facts on stdout, where the rows go already; give a file with -o")
    check_export(wanted, job.arms, job.samples, bool(job.sweep))
    before = db.jobs.progress(ledger, job.id)
    exported = write_export(ledger, job, wanted, follow)
    progress = insist(lambda: db.jobs.progress(ledger, job.id)) if follow else before
    _note_if_partial(progress)
    if as_json:
        console.out_json({"id": job.id, "file": wanted.target, **asdict(exported)})
    context.exit(exit_code(progress) if follow else Exit.DONE)


def _note_if_partial(progress: JobProgress) -> None:
    """Say on stderr that rows are missing from an export."""
    if progress.pending_rows:
        total = progress.job.total_rows
        advice = "" if progress.job.status.is_final else "; --follow waits for the rest"
        console.note(f"{total - progress.pending_rows:,} of {total:,} rows have an outcome{advice}")
