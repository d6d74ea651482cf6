"""`genarm arm train`: an ARM from preference pairs."""

import hashlib
import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from db.datasets import DatasetSource, format_of, placed_rows
from db.errors import DatasetError
from worker.cli import console
from worker.cli.errors import Exit
from worker.cli.interrupts import stop_on_signal
from worker.cli.options import FORMATS, json_option
from worker.settings import Settings

if TYPE_CHECKING:
    from models.training.card import Trained
    from models.training.dataset import PairSource

LOOK_AHEAD_ROWS = 100

DATA_OPTIONS = (
    click.option("--eval", "eval_pairs", metavar="PAIRS", help="Held-out pairs: a file or dataset of their own."),
    click.option("--eval-split", metavar="NAME", help="Split of held-out pairs of a Hugging Face dataset."),
    click.option("--eval-fraction", type=float, help="Share of the prompts to hold out where none are given.  [0]"),
    click.option("--split", metavar="NAME", help="Split of a Hugging Face dataset.  [train]"),
    click.option("--config", metavar="NAME", help="Configuration of a Hugging Face dataset."),
    click.option("--format", "file_format", type=click.Choice(FORMATS), help="Of PAIRS, where its name does not tell."),
    click.option("--prompt-column", default="prompt", show_default=True, metavar="NAME"),
    click.option("--chosen-column", default="chosen", show_default=True, metavar="NAME"),
    click.option("--rejected-column", default="rejected", show_default=True, metavar="NAME"),
    click.option("--raw", is_flag=True, default=None, help="Take prompts as they stand, as genarm run --raw does."),
    click.option("--max-prompt-tokens", type=int, help="Longer prompts are left out.  [512]"),
    click.option("--max-tokens", type=int, help="So are pairs longer than this, the prompt included.  [1024]"),
)
OBJECTIVE_OPTIONS = (
    click.option("--objective", type=click.Choice(["paper", "fused"]),
                 help="Compare summed log-probabilities, or those of base and ARM together per token.  [paper]"),
    click.option("--beta", type=float, help="β_r.  [0.05; fused: 2]"),
    click.option("--margin", type=float, help="γ of the fused objective.  [1]"),
    click.option("--fused-weight", type=float, help="w of the fused objective.  [1]"),
)  # fmt: skip
TUNING_OPTIONS = (
    click.option("--full", is_flag=True, help="Train all weights; the result is a whole model.  [a LoRA adapter]"),
    click.option("--lora-rank", type=int, help="[8]"),
    click.option("--lora-alpha", type=float, help="[16]"),
    click.option("--target", "targets", multiple=True,
                 help="A linear layer to adapt, or all-linear; repeatable.  [q_proj k_proj v_proj]"),
    click.option("--lr", "learning_rate", type=float, help="Peak learning rate.  [0.0005; full: 5e-7]"),
    click.option("--warmup", type=float, help="Share of the steps in which it rises.  [0.1]"),
    click.option("--weight-decay", type=float, help="[0.05]"),
    click.option("--epochs", type=int, help="[1]"),
    click.option("--batch", type=int, help="Pairs per optimiser step.  [32]"),
    click.option("--micro-batch", type=int, help="Pairs per pass; gradients are accumulated.  [8]"),
    click.option("--gradient-checkpointing", is_flag=True, default=None, help="Less memory, more time."),
    click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16"]), help="[auto]"),
    click.option("--seed", type=int, help="Same seed, same ARM.  [0]"),
)  # fmt: skip
COURSE_OPTIONS = (
    click.option("--eval-every", type=int, help="Steps between looks at the held-out pairs.  [before and after]"),
    click.option("--patience", type=int,
                 help="End after so many of them without a lower loss, and keep the best weights.  [never]"),
    click.option("--save-every", type=click.IntRange(min=0), default=50, show_default=True,
                 help="Steps between checkpoints; 0: none."),
    click.option("--resume", is_flag=True, help="Go on from the checkpoint in the output folder, if there is one."),
)  # fmt: skip


def _with_options(command: Any) -> Any:
    for option in reversed((*DATA_OPTIONS, *OBJECTIVE_OPTIONS, *TUNING_OPTIONS, *COURSE_OPTIONS)):
        command = option(command)
    return command


@click.command()
@click.argument("pairs")
@click.option("-o", "--output", type=click.Path(path_type=Path, file_okay=False), required=True, help="Of the ARM.")
@click.option("--base", required=True, metavar="REF", help="Model to train from: hub id, folder or .gguf file.")
@click.option("--base-name", metavar="NAME", help="The base's name in the ARM's files, best a hub id.")
@click.option("--about", default="", help="What the pairs prefer, for the model card.")
@_with_options
@json_option
@click.pass_context
def train(context: click.Context, /, pairs: str, as_json: bool, **options: Any) -> None:
    """Train an ARM from preference pairs: prompt, chosen, rejected.

    PAIRS is a .jsonl, .csv or .parquet file, or a Hugging Face dataset. The prompt is text, messages, or what the
    conversations in chosen and rejected have in common ("\\n\\nHuman: … \\n\\nAssistant: …" or messages).

    Ctrl-C saves a checkpoint; the same command with --resume goes on, to the same weights. Several GPUs:
    accelerate launch -m worker.cli arm train …

    \b
    Example:
        genarm arm train pairs.jsonl --eval heldout.jsonl --base ./model -o my-arm --epochs 2
        genarm arm train pairs.jsonl --eval-fraction 0.5 --base ./model -o best-arm --eval-every 1 --patience 3
        genarm arm train pairs.jsonl --base ./model -o whole-arm --full --lr 1e-5
    """
    from models.training.checkpoint import newest
    from models.training.run import TrainingRun, TrainingStopped, is_main_process, train_arm

    source, eval_source = _sources(pairs, options)
    run = TrainingRun(
        base=options["base"],
        pairs=source,
        output=options["output"],
        settings=_settings(options),
        home=Settings().home,
        eval_pairs=eval_source,
        save_every=options["save_every"],
        resume=options["resume"],
        base_name=options["base_name"],
        about=options["about"],
        command=_published(sys.argv[1:]),
    )
    try:
        with console.training_bars() as bars, stop_on_signal("Stopping; once more to break off.") as asked:
            trained = train_arm(run, _listener(bars, asked))
    except TrainingStopped as stopped:
        console.note(str(stopped))
        context.exit(Exit.INTERRUPTED)
    except KeyboardInterrupt:
        if (kept := newest(run.output)) is not None:
            console.note(f"The checkpoint of step {kept.step} stays; the same command with --resume goes on from it.")
        raise
    if is_main_process():
        _report(trained, as_json)


def _published(words: Sequence[str]) -> str:
    """The command as a model card shows it, which others read: of a path from the root, its last part."""
    return shlex.join(["genarm", *(Path(word).name if Path(word).is_absolute() else word for word in words)])


def _settings(options: Mapping[str, Any]) -> Any:
    from models.training.settings import TrainingSettings

    chosen = {name: options[name] for name in TrainingSettings.model_fields if options.get(name) not in (None, ())}
    return TrainingSettings.parse(chosen | ({"tuning": "full"} if options["full"] else {}))


def _sources(pairs: str, options: Mapping[str, Any]) -> tuple["PairSource", "PairSource | None"]:
    """The pairs to train on and the held-out ones."""
    names = {options[f"{name}_column"]: name for name in ("prompt", "chosen", "rejected")}
    if len(names) < 3:
        raise DatasetError("--prompt-column, --chosen-column and --rejected-column must name three columns")
    config, eval_split = options["config"], options["eval_split"]
    source = DatasetSource(pairs, file_format=options["file_format"], config=config, split=options["split"])
    if options["eval_pairs"] is None and eval_split is None:
        return _source(source, names), None
    evaluated = options["eval_pairs"] or pairs
    eval_config = config if eval_split is not None else None
    return _source(source, names), _source(DatasetSource(evaluated, config=eval_config, split=eval_split), names)


def _source(dataset: DatasetSource, names: Mapping[str, str]) -> "PairSource":
    from models.training.dataset import PairSource

    path = Path(dataset.name)
    is_file = path.is_file()
    digest = None
    if is_file:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    parts = (dataset.name, dataset.config, dataset.split)
    return PairSource(path.name if is_file else " ".join(filter(None, parts)), _rows(dataset, names), digest)


def _rows(dataset: DatasetSource, names: Mapping[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a dataset, with our names for the columns; a column that was named displaces one called so.

    Raises:
        DatasetError: the dataset cannot be read, or has no pairs in the columns of these names.
    """
    rows = placed_rows(dataset)
    beginning = list(islice(rows, LOOK_AHEAD_ROWS))
    for theirs, ours in names.items():
        is_wanted = ours != "prompt" or theirs != ours
        if beginning and is_wanted and not any(theirs in row for _, row in beginning):
            found = ", ".join(dict.fromkeys(name for _, row in beginning for name in row)) or "none"
            raise DatasetError(
                f"{dataset.name}: has no column {theirs!r} (its columns: {found}); name it with --{ours}-column"
            )
    is_csv = Path(dataset.name).is_file() and format_of(dataset.name, dataset.file_format) == "csv"
    for place, row in chain(beginning, rows):
        others = {name: value for name, value in row.items() if name not in names and name not in names.values()}
        renamed = others | {ours: row[theirs] for theirs, ours in names.items() if theirs in row}
        yield place, {name: _from_csv(value) for name, value in renamed.items()} if is_csv else renamed


def _from_csv(cell: Any) -> Any:
    """A cell of CSV: a list of messages is JSON there."""
    if not isinstance(cell, str) or not cell.lstrip().startswith("["):
        return cell
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        return cell
    is_messages = isinstance(value, list) and all(isinstance(item, dict) and "role" in item for item in value)
    return value if value and is_messages else cell


def _listener(bars: console.TrainingBars, asked: Any) -> Any:
    from worker.cli.training_view import TrainingView

    return TrainingView(bars, asked)


def _report(trained: "Trained", as_json: bool) -> None:
    if trained.before and trained.after:
        console.note(
            f"held-out accuracy {trained.before.accuracy:.3f} before, {trained.after.accuracy:.3f} after; "
            f"loss {trained.before.loss:.3f} before, {trained.after.loss:.3f} after"
        )
    facts = {
        "arm": str(trained.output),
        "steps": trained.steps,
        "seconds": trained.seconds,
        "accuracy_before": trained.before and trained.before.accuracy,
        "accuracy_after": trained.after and trained.after.accuracy,
        "pairs": len(trained.data.train),
        "left_out": {one.name: one.problems for one in trained.data.sets},
        "evaluations": {str(step): vars(one) for step, one in trained.evaluations.items()},
    }
    text = f"{trained.steps} steps in {trained.seconds:.0f} s; the ARM is {trained.output}"
    console.fact(facts, text, as_json)
