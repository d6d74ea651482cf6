"""`genarm arm …`: train ARMs."""

import shlex
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from worker.cli import console
from worker.cli.options import json_option
from worker.settings import Settings

if TYPE_CHECKING:
    from models.training.dataset import Data

BAD_PAIRS_SHOWN = 5


@click.group()
def arm() -> None:
    """Train autoregressive reward models.

    \b
    Example:
        genarm arm train pairs.jsonl --base ./model -o my-arm
    """


@arm.command()
@click.argument("pairs", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder of the adapter.")
@click.option("--base", required=True, metavar="REF", help="Model that is adapted: hub id, folder or .gguf file.")
@click.option("--base-name", metavar="NAME", help="The base's name in the adapter's files, best a hub id.")
@click.option("--eval", "eval_pairs", type=click.Path(path_type=Path), help="Held-out pairs.")
@click.option("--eval-fraction", type=float, help="Share of PAIRS to hold out where --eval is not given.")
@click.option("--about", default="", help="What the pairs prefer, for the model card.")
@click.option("--beta", type=float, help="β_r of the objective.  [0.05]")
@click.option("--lr", "learning_rate", type=float, help="Peak learning rate.  [0.0005]")
@click.option("--warmup", type=float, help="Share of the steps.  [0.1]")
@click.option("--weight-decay", type=float, help="[0.05]")
@click.option("--epochs", type=int, help="[1]")
@click.option("--batch", type=int, help="Pairs per optimiser step.  [32]")
@click.option("--micro-batch", type=int, help="Pairs per pass.  [8]")
@click.option("--lora-rank", type=int, help="[8]")
@click.option("--lora-alpha", type=float, help="[16]")
@click.option("--target", "targets", multiple=True, help="A linear layer to adapt; repeatable.  [q_proj k_proj v_proj]")
@click.option("--max-prompt-tokens", type=int, help="[512]")
@click.option("--max-tokens", type=int, help="[1024]")
@click.option("--seed", type=int, help="[0]")
@click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16"]), help="[auto]")
@json_option
def train(
    pairs: Path,
    output: Path,
    base: str,
    base_name: str | None,
    eval_pairs: Path | None,
    about: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Train an ARM, a LoRA adapter, from preference pairs: JSONL with prompt or messages, chosen, rejected.

    \b
    Example:
        genarm arm train pairs.jsonl --eval heldout.jsonl --base ./model -o my-arm --epochs 2
    """
    from models.training.run import TrainingRun, train_arm
    from models.training.settings import TrainingSettings

    warnings.filterwarnings("ignore", category=FutureWarning)  # transformers' and peft's, about each other
    chosen = {name: value for name, value in options.items() if value not in (None, ())}
    run = TrainingRun(
        base=base,
        pairs=pairs,
        output=output,
        settings=TrainingSettings.parse(chosen),
        home=Settings().home,
        eval_pairs=eval_pairs,
        base_name=base_name,
        about=about,
        command=shlex.join(["genarm", *sys.argv[1:]]),
    )
    with console.training_bar() as bar:
        trained = train_arm(run, _show_data, bar)
    if trained.before and trained.after:
        console.note(f"held-out accuracy {trained.before.accuracy:.3f} before, {trained.after.accuracy:.3f} after")
    accuracies = {"accuracy_before": trained.before, "accuracy_after": trained.after}
    facts = {"arm": str(output), "steps": trained.steps, "seconds": trained.seconds}
    facts |= {name: found and found.accuracy for name, found in accuracies.items()}
    console.fact(facts, f"{trained.steps} steps in {trained.seconds:.0f} s; the ARM is {output}", as_json)


def _show_data(data: "Data") -> None:
    """Say what is trained on, and name the pairs that cannot be used."""
    for file in data.files:
        for bad in file.bad[:BAD_PAIRS_SHOWN]:
            console.note(f"{file.path.name}, {bad}")
        if len(file.bad) > BAD_PAIRS_SHOWN:
            console.note(f"{file.path.name}: … and {len(file.bad) - BAD_PAIRS_SHOWN} more pairs that cannot be used")
        console.note(str(file))
    console.note(f"{len(data.train)} pairs for training, {len(data.held_out)} held out")
