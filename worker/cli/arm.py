"""`genarm arm …`: train ARMs."""

import click

from worker.cli.arm_train import train


@click.group()
def arm() -> None:
    """Train autoregressive reward models.

    \b
    Example:
        genarm arm train pairs.jsonl --base ./model -o my-arm
    """


arm.add_command(train)
