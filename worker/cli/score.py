"""`genarm score`: token rewards of responses that exist already."""

from dataclasses import replace
from typing import Any

import click

from worker.cli.export import output_options
from worker.cli.options import absolute, arms_of, dataset_of, input_argument, job_options, json_option, rendering_of
from worker.cli.run import run_to_file
from worker.scoring import KIND
from worker.submission import Submission


@click.command()
@input_argument
@output_options("--output-format")
@click.option("--device", default=None, help="Where the models run: auto, cpu, cuda or cuda:N.")
@click.option("--arm", "arms", multiple=True, required=True, metavar="[NAME=]REF", help="An ARM. Repeatable.")
@click.option("--base", metavar="REF", help="Give the base's log-probabilities too, for rewards relative to it.")
@job_options
@json_option
@click.pass_context
def score(
    context: click.Context,
    /,
    source: str,
    arms: tuple[str, ...],
    base: str | None,
    device: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Write the token rewards of the responses in INPUT to a file, by one or more ARMs.

    Each row has a prompt or messages, and a response. Rows that `genarm run` wrote are scored by the tokens that they
    were generated with: --response-column completion.

    \b
    Example:
        genarm score responses.jsonl -o scored.parquet --arm examples/arms/positive
    """
    specs = arms_of([(arm, 1.0) for arm in arms], options["arm_templates"], options["arms_on_base"])
    spec = {
        "base": absolute(base) if base is not None else specs[0]["ref"],
        "arms": specs,
        "system": options["system"],
        "raw": options["raw"],
        "dtype": options["dtype"],
        **rendering_of(options),
    }
    dataset = dataset_of(source, options)
    submission = Submission(
        source=replace(dataset, columns=replace(dataset.columns, needs_response=True)),
        spec=spec,
        name=options["name"],
        priority=options["priority"],
        shard_rows=options["shard_rows"],
        key=options["key"],
        kind=KIND,
    )
    run_to_file(context, submission, options, device, as_json)
