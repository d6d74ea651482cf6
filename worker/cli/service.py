"""`genarm worker` and `genarm up`: what runs on and on."""

import time
from contextlib import ExitStack

import click

from worker.cli import console
from worker.cli.options import absolute, json_option
from worker.embedded import redis_server, worker_process
from worker.ledger import open_ledger
from worker.settings import Settings


@click.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
@click.option(
    "--base",
    "bases",
    multiple=True,
    metavar="REF",
    help="Take jobs with this base, and no others. Repeatable.  [GENARM_BASES; default: all jobs]",
)
@click.option("--device", help="Where models run: auto, cpu, cuda or cuda:N.  [GENARM_DEVICE]")
@click.option(
    "--device-map",
    type=click.Choice(["auto", "balanced", "balanced_low_0", "sequential"]),
    help="Spread the layers of each model over all GPUs that this process sees.  [GENARM_DEVICE_MAP]",
)
@click.argument("celery_options", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def worker(
    context: click.Context,
    /,
    bases: tuple[str, ...],
    device: str | None,
    device_map: str | None,
    celery_options: tuple[str, ...],
) -> None:
    """Run a worker until it is stopped; all other options are those of Celery's own worker command.

    \b
    Example:
        genarm worker --base HuggingFaceTB/SmolLM2-135M-Instruct --concurrency 4
    """
    from worker.app import run_worker

    chosen = {"bases": tuple(map(absolute, bases)) or None, "device": device, "device_map": device_map}
    settings = Settings().model_copy(update={name: value for name, value in chosen.items() if value is not None})
    context.exit(run_worker(settings, celery_options))


@click.command()
@json_option
def up(as_json: bool) -> None:
    """Run everything that this machine needs, in the foreground, until Ctrl-C: database, Redis, one worker.

    \b
    Example:
        genarm up
    """
    settings = Settings()
    open_ledger(settings).dispose()
    with ExitStack() as stack:
        with console.status("starting Redis and a worker"):
            stack.enter_context(redis_server(settings))
            process = stack.enter_context(worker_process(settings, tell=console.note))
        ready = f"Ready: `genarm job submit …` in {settings.home.parent}; the log is {process.log}; Ctrl-C stops."
        console.fact({"ready": True, "home": settings.home, "log": process.log, "pid": process.pid}, ready, as_json)
        try:
            while True:
                time.sleep(1.0)
                process.check()
        except KeyboardInterrupt:
            console.note("Stopping; rows in work are finished or handed back.")
