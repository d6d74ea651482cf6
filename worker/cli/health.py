"""`genarm health`: whether the worker of this machine is well, for the health checks of containers."""

import json
import urllib.error
import urllib.request

import click

from worker.cli import console
from worker.cli.errors import Exit
from worker.settings import Settings

SECONDS = 5.0


@click.command()
@click.pass_context
def health(context: click.Context) -> None:
    """Ask the worker on this machine whether it is well: exit code 0, or 1 where only a restart mends it.

    Needs GENARM_METRICS_PORT, as the worker has it. 5: nothing answers there.

    \b
    Example:
        GENARM_METRICS_PORT=9464 genarm health
    """
    settings = Settings()
    if not settings.metrics_port:
        raise click.UsageError("set GENARM_METRICS_PORT to the port of the worker")
    host = "127.0.0.1" if settings.metrics_host == "0.0.0.0" else settings.metrics_host
    address = f"http://{host}:{settings.metrics_port}/health"
    try:
        with urllib.request.urlopen(address, timeout=SECONDS) as answer:
            found = json.load(answer)
    except urllib.error.HTTPError as error:
        found = json.load(error)
    except (OSError, ValueError) as error:
        console.error(f"no worker answers at {address} ({getattr(error, 'reason', error)})")
        context.exit(Exit.UNREACHABLE)
    console.out_json(found)
    context.exit(Exit.DONE if found["status"] == "ok" else Exit.FAILURE)
