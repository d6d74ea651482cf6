"""`genarm job …`: submit, look, follow, cancel, repeat, export and delete jobs."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from typing import Any

import click

import db.jobs
from db.jobs import JobProgress
from models.spec import is_template_name
from worker.cli import console
from worker.cli.errors import Exit
from worker.cli.export import export_job
from worker.cli.following import changes, exit_code, follow, summary
from worker.cli.options import generation_options, input_argument, job_id_argument, json_option, submission_of
from worker.cli.report import report_job
from worker.cli.scatter import BEST, scatter
from worker.cli.served import base_of, is_served, note_if_unserved, remedy
from worker.cli.waiting import announce_if_possible
from worker.ledger import open_ledger
from worker.report.sweep import Front, front_of, label
from worker.settings import Settings
from worker.submission import submit

NO_WORKER = "a worker takes it up as soon as one runs: genarm up"


@click.group()
def job() -> None:
    """Submit, follow and export jobs.

    \b
    Example:
        genarm job list
    """


@job.command("submit")
@input_argument
@generation_options
@json_option
def submit_job(source: str, as_json: bool, **options: Any) -> None:
    """Store INPUT as a job and print its id; workers do the rest.

    \b
    Example:
        genarm job submit prompts.jsonl --base HuggingFaceTB/SmolLM2-135M-Instruct --arm examples/arms/positive 1
    """
    settings = Settings()
    ledger = open_ledger(settings)
    with console.rows_read(source) as on_rows:
        submitted = submit(ledger, settings, submission_of(source, options), on_rows)
    if as_json:
        console.out_json({"id": submitted.id, "rows": submitted.total_rows})
    else:
        console.out(submitted.id)
    announce_if_possible(ledger, settings, NO_WORKER)
    note_if_unserved(ledger, settings, submitted.id)


@job.command("list")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="So many, newest first.")
@json_option
def list_jobs(limit: int, as_json: bool) -> None:
    """List jobs, newest first.

    \b
    Example:
        genarm job list --limit 10
    """
    jobs = db.jobs.list_jobs(open_ledger(Settings()), limit)
    if as_json:
        for one in jobs:
            console.out_json(facts(one))
        return
    rows = [
        (one.job.id, one.job.status.value, f"{one.completed_rows}/{one.job.total_rows}", one.failed_rows,
         one.job.created_at.strftime("%Y-%m-%d %H:%M"), one.job.name)
        for one in jobs
    ]  # fmt: skip
    console.table(("id", "status", "rows", "failed", "created (UTC)", "name"), rows)


def facts(progress: JobProgress) -> dict[str, Any]:
    """All that is known of a job, flat."""
    fields = asdict(progress)
    return {**fields.pop("job"), **fields}


@job.command()
@job_id_argument
@json_option
def show(job_id: str, as_json: bool) -> None:
    """Show a job; the ID may be shortened while it is unique.

    \b
    Example:
        genarm job show job-1m86dg0
    """
    settings = Settings()
    ledger = open_ledger(settings)
    progress = db.jobs.progress(ledger, db.jobs.find(ledger, job_id).id)
    front = front_of(ledger, progress.job)
    served = is_served(progress, settings)
    if as_json:
        console.out_json(facts(progress) | {"is_served": served} | ({"front": asdict(front)} if front else {}))
        return
    lines = [(name.replace("_", " "), value) for name, value in _readable(progress)]
    waits = [("waits for", remedy(base_of(progress)))] if served is False else []
    console.table(("", ""), lines + waits)
    if front:
        _show_front(front)


def _readable(progress: JobProgress) -> Iterator[tuple[str, Any]]:
    """What is known of a job, line by line; what a spec leaves at its default is left out."""
    for name, value in facts(progress).items():
        if name == "spec":
            yield "base", value.get("base")
            for arm in value.get("arms", ()):
                yield f"ARM {arm['name']}", f"{arm['ref']} × {arm.get('weight', 1.0):g}"
            sampling = value.get("sampling") or {}
            yield "sampling", ", ".join(f"{key} {setting}" for key, setting in sampling.items() if setting)
            yield from _rendering(value)
        elif isinstance(value, datetime):
            yield name, value.strftime("%Y-%m-%d %H:%M:%S UTC")
        elif isinstance(value, float):
            yield name, f"{value:,.2f}"
        elif value is not None:
            yield name, value


def _rendering(spec: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """What a job says of its base's chat template."""
    if template := spec.get("chat_template"):
        yield "chat template", template if is_template_name(template) else "given with the job"
    if kwargs := spec.get("chat_template_kwargs"):
        yield "chat template kwargs", json.dumps(kwargs, ensure_ascii=False)
    if day := spec.get("date"):
        yield "date in chat templates", day


def _show_front(front: Front) -> None:
    """A table of a sweep's points, whose rewards are means per token; on a terminal also a chart."""
    arms = sorted({arm for point in front.points for arm in point.rewards})
    rows = [
        (
            label(point.weights),
            *(_number(point.rewards.get(arm), 3) for arm in arms),
            *([_number(point.kl, 3)] if len(front.arms) == 1 else []),
            _number(point.tokens, 1),
            point.completions,
            point.failed,
            "on the front" if is_on_front else "",
        )
        for point, is_on_front in zip(front.points, front.on_front, strict=True)
    ]
    console.out("")
    kl = ["KL"] if len(front.arms) == 1 else []
    console.table(("point", *(f"{arm} per token" for arm in arms), *kl, "tokens", "completions", "failed", ""), rows)
    if front.hypervolume is None:
        return
    console.out(f"\nhypervolume {front.hypervolume:.4f} above the worst of each")
    if console.is_terminal():
        console.out("")
        for line in _chart(front):
            console.out(line)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _chart(front: Front) -> Iterator[str]:
    """The points by the first two ARMs that are swept, or by KL and the only one."""
    is_alone = len(front.arms) == 1
    x_name, y_name = ("KL", front.arms[0]) if is_alone else front.arms[:2]
    points = []
    for point, is_on_front in zip(front.points, front.on_front, strict=True):
        x, y = point.kl if is_alone else point.rewards.get(x_name), point.rewards.get(y_name)
        if x is not None and y is not None:
            points.append((x, y, is_on_front))
    return scatter(points, x_name, f"{y_name} per token ({BEST} on the front)")


@job.command()
@job_id_argument
@json_option
@click.pass_context
def watch(context: click.Context, job_id: str, as_json: bool) -> None:
    """Follow a job until it has ended. Ctrl-C stops watching, not the job.

    With --json there is an object at the start, and another whenever rows, shards, workers or the status have changed.

    \b
    Examples:
        genarm job watch job-1m86dg0
        genarm job watch job-1m86dg0 --json
    """
    settings = Settings()
    ledger = open_ledger(settings)
    found = db.jobs.find(ledger, job_id)
    note_if_unserved(ledger, settings, found.id)
    if as_json:
        for progress in changes(ledger, found.id):
            console.out_json(facts(progress))
    else:
        progress = follow(ledger, found.id)
        console.note(summary(progress))
    context.exit(exit_code(progress))


@job.command()
@job_id_argument
@json_option
def cancel(job_id: str, as_json: bool) -> None:
    """Cancel a job; what is finished stays.

    \b
    Example:
        genarm job cancel job-1m86dg0
    """
    cancelled = db.jobs.cancel(open_ledger(Settings()), job_id)
    console.fact({"id": cancelled.id, "status": cancelled.status}, f"{cancelled.id} {cancelled.status.value}", as_json)


@job.command()
@job_id_argument
@json_option
def retry(job_id: str, as_json: bool) -> None:
    """Do the failed and cancelled rows of a job again.

    \b
    Example:
        genarm job retry job-1m86dg0
    """
    settings = Settings()
    ledger = open_ledger(settings)
    found = db.jobs.find(ledger, job_id)
    count = db.jobs.retry_failed(ledger, found.id)
    console.fact({"id": found.id, "rows": count}, f"{found.id}: {count} rows to do again", as_json)
    announce_if_possible(ledger, settings, NO_WORKER)
    note_if_unserved(ledger, settings, found.id)


job.add_command(export_job)
job.add_command(report_job)


@job.command()
@job_id_argument
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@click.pass_context
def delete(context: click.Context, /, job_id: str, yes: bool, as_json: bool) -> None:
    """Delete a job with all its rows and results.

    \b
    Example:
        genarm job delete job-1m86dg0 --yes
    """
    ledger = open_ledger(Settings())
    found = db.jobs.find(ledger, job_id)
    if not (yes or console.agreed(f"Delete {found.id} with its {found.total_rows} rows?")):
        context.exit(Exit.FAILURE)
    db.jobs.delete(ledger, found.id)
    console.fact({"id": found.id, "deleted": True}, f"deleted {found.id}", as_json)
