"""`genarm job report`: one HTML page on a job."""

from typing import Any

import click

from db.datasets.writing import check_target, whole_file
from db.errors import DatasetError
from worker.cli import console
from worker.cli.options import job_id_argument, json_option
from worker.ledger import open_ledger
from worker.settings import Settings


@click.command("report")
@job_id_argument
@click.option("-o", "--output", required=True, metavar="FILE.html", help="The page; - for stdout.")
@click.option(
    "--limit",
    type=click.IntRange(1),
    default=10_000,
    show_default=True,
    help="Most completions to show; of more, rows spread evenly over the job.",
)
@json_option
def report_job(job_id: str, output: str, limit: int, as_json: bool) -> None:
    """Write a report on a job: one HTML page that needs no network.

    It has a summary, the distributions of the rewards, reward against KL, the front of a sweep, the failures, and a
    reader whose tokens are shaded by their rewards.

    \b
    Example:
        genarm job report job-1m86dg0 -o report.html
    """
    from worker.report.collect import collect, read_progress
    from worker.report.page import page

    if as_json and output == "-":
        raise DatasetError("--json prints facts on stdout, where the page goes already; give a file with -o")
    check_target(output, "html")
    settings = Settings()
    ledger = open_ledger(settings)
    progress = read_progress(ledger, job_id)
    with console.status("reading completions"):
        data = collect(ledger, progress, limit)
        text = page(data, _token_texts(progress.job.spec.get("base"), settings, data.token_ids))
    with whole_file(output) as file:
        file.write(text)
    shown = len(data.entries.id)
    facts = {"id": progress.job.id, "file": output, "completions": shown, "bytes": len(text.encode())}
    console.fact(facts, f"{output}: {shown} completions, {len(text) / 1e6:.1f} MB", as_json)


def _token_texts(base: Any, settings: Settings, ids: set[int]) -> dict[int, bytes] | None:
    """The texts of the tokens by the base's tokenizer; None where that is not to be had on this machine."""
    from models.errors import ModelsError
    from models.loading import describe
    from worker.report.tokens import token_texts

    if not ids:
        return {}
    try:
        return token_texts(describe(str(base), settings.home).tokenizer, sorted(ids))
    except ModelsError as error:
        console.note(f"The tokenizer cannot be read ({error}); tokens appear as ids.")
        return None
