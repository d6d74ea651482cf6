"""`genarm arm …`: train ARMs, and check that they fit a base."""

import click

from worker.cli.arm_check import check
from worker.cli.arm_train import train


@click.group()
def arm() -> None:
    """Train autoregressive reward models, and check that they fit a base.

    \b
    Example:
        genarm arm train pairs.jsonl --base ./model -o my-arm
    """


arm.add_command(train)
arm.add_command(check)
