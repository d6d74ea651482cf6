"""The root command; the groups are imported when they are used."""

import sys
from importlib import import_module
from importlib.metadata import version

import click

from worker import quiet
from worker.cli.errors import Group

COMMANDS = {
    "run": "worker.cli.run:run",
    "score": "worker.cli.score:score",
    "job": "worker.cli.job:job",
    "arm": "worker.cli.arm:arm",
    "worker": "worker.cli.service:worker",
    "up": "worker.cli.service:up",
    "db": "worker.cli.database:database",
    "doctor": "worker.cli.doctor:doctor",
    "completion": "worker.cli.completion:completion",
    "health": "worker.cli.health:health",
}


class LazyGroup(Group):
    """Imports a command when it is asked for."""

    def list_commands(self, context: click.Context) -> list[str]:
        """In the order in which people meet them."""
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Import it."""
        if name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[name].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("genarm"), prog_name="genarm")
def main() -> None:
    """Generate with a large language model guided by autoregressive reward models (ARMs).

    Without GENARM_DATABASE_URL and GENARM_BROKER_URL everything runs on this machine, under ./.genarm.

    \b
    Example:
        genarm run prompts.jsonl -o out.jsonl --base HuggingFaceTB/SmolLM2-135M-Instruct --arm examples/arms/positive 1
    """
    quiet.hush()
    if not sys.stderr.isatty():
        quiet.hush_bars()
