"""Options that describe a job, shared by the commands that submit one."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem
from pydantic import ValidationError

from db.datasets import Columns, DatasetSource, Template
from models.errors import SpecError
from models.references import existing_path
from models.spec import is_template_name
from worker.submission import Submission

FORMATS = ("jsonl", "csv", "parquet")
LARGEST_WEIGHT = 1e4
NAME = re.compile(r"[^\s=,/]{1,128}")
SEPARATORS = re.compile(r"[\s=,]+")
"""What a folder's name may have, and an ARM's may not."""

F = TypeVar("F", bound=Callable[..., Any])


def _with_weights(
    context: click.Context, parameter: click.Parameter, pairs: tuple[tuple[str, str], ...]
) -> list[tuple[str, float]]:
    """Checked as options are read: where the weight is left out, the next option stands in its place."""
    weighted = []
    for ref, weight in pairs:
        try:
            weighted.append((ref, float(weight)))
        except ValueError:
            raise SpecError(f"--arm {ref} {weight}: the weight must be a number, as in --arm {ref} 1") from None
    return weighted


def _one_input(context: click.Context, parameter: click.Parameter, names: tuple[str, ...]) -> str:
    """The shell puts the files that a pattern stands for in its place."""
    if len(names) > 1:
        raise click.UsageError(
            f"INPUT is one file, folder or pattern, and here are {len(names)} (the second: {names[1]}); "
            "write a pattern of files in quotes: 'data/*.jsonl'"
        )
    return names[0]


input_argument = click.argument("source", metavar="INPUT", nargs=-1, required=True, callback=_one_input)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")


def _complete_job_id(context: click.Context, parameter: click.Parameter, beginning: str) -> list[CompletionItem]:
    """The jobs submitted last, for the shell's Tab key; none where there is no ledger or it does not answer."""
    import db.jobs
    from db.errors import DbError
    from db.session import connect
    from worker.ledger import has_database
    from worker.settings import Settings

    try:
        settings = Settings()
        found = db.jobs.list_jobs(connect(settings.effective_database_url)) if has_database(settings) else []
    except (DbError, ValidationError):
        return []
    return [
        CompletionItem(one.job.id, help=" ".join(filter(None, (one.job.status.value, one.job.name))))
        for one in found
        if one.job.id.startswith(beginning)
    ]


job_id_argument = click.argument("job_id", metavar="ID", shell_complete=_complete_job_id)

GENERATION_OPTIONS = (
    click.option("--base", required=True, metavar="REF", help="Base model: hub id, folder or .gguf file."),
    click.option(
        "--arm", "arms", multiple=True, nargs=2, metavar="[NAME=]REF WEIGHT", callback=_with_weights,
        help="An ARM (hub id, folder or LoRA adapter) and its weight w = α/β. Repeatable.",
    ),
    click.option("--sweep", "sweeps", multiple=True, metavar="ARM=W,W,…",
                 help="Generate with each of these weights; several sweeps make every combination. Repeatable."),
    click.option("-n", "--samples", type=int, default=1, show_default=True, help="Completions per row."),
    click.option("--max-new-tokens", type=int, default=128, show_default=True, help="Longest completion."),
    click.option("--temperature", type=float, default=1.0, show_default=True, help="0 is greedy."),
    click.option("--top-p", type=float, default=1.0, show_default=True, help="Nucleus; 1 is off."),
    click.option("--top-k", type=int, default=0, show_default=True, help="0 is off."),
    click.option("--min-p", type=float, default=0.0, show_default=True, help="0 is off."),
    click.option("--stop", multiple=True, metavar="TEXT", help="End a completion before this text. Repeatable."),
    click.option("--ignore-eos", is_flag=True, help="Generate on after the end-of-sequence token."),
    click.option("--seed", type=int, default=0, show_default=True, help="Same seed, same completions."),
)  # fmt: skip

TEMPLATE_OPTIONS = (
    click.option(
        "--chat-template", metavar="FILE|NAME",
        help="A Jinja chat template for the base, instead of its own; or the name of one of its own.",
    ),
    click.option(
        "--arm-template", "arm_templates", multiple=True, metavar="ARM=FILE|NAME",
        help="The same for an ARM. Repeatable.",
    ),
)  # fmt: skip

JOB_OPTIONS = (
    *TEMPLATE_OPTIONS,
    click.option(
        "--arm-on-base", "arms_on_base", multiple=True, metavar="NAME",
        help="This ARM is a LoRA adapter of the base, whatever its files say that it was trained on. Repeatable.",
    ),
    click.option(
        "--chat-template-kwargs", metavar="JSON",
        help='Variables for the chat templates: \'{"enable_thinking": false}\'.',
    ),
    click.option("--date", metavar="YYYY-MM-DD", help="For chat templates that write today's date.  [today, in UTC]"),
    click.option("--system", metavar="TEXT", help="System message before each prompt."),
    click.option("--raw", is_flag=True, help="Use prompts as they stand, without chat templates."),
    click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), default="auto",
                 show_default=True, help="Precision."),
    click.option("--name", help="A name for the job."),
    click.option("--key", help="Submitting the same again with the same key gives the first job, not another."),
    click.option("--priority", type=click.IntRange(0, 9), default=5, show_default=True, help="9 runs first."),
    click.option("--shard-rows", type=click.IntRange(1, 4096), help="Rows that a worker claims at once."),
)  # fmt: skip

INPUT_OPTIONS = (
    click.option("--format", "file_format", type=click.Choice(FORMATS), help="Of INPUT, where its name does not tell."),
    click.option("--config", metavar="NAME", help="Configuration of a Hugging Face dataset."),
    click.option("--split", metavar="NAME", help="Split of a Hugging Face dataset.  [train]"),
    click.option("--prompt-column", metavar="NAME", help="Column of prompts.  [prompt]"),
    click.option("--messages-column", metavar="NAME", help="Column of chat messages.  [messages]"),
    click.option("--id-column", metavar="NAME", help="Column of ids.  [id, else custom_id]"),
    click.option("--response-column", metavar="NAME", help="Column of responses.  [response]"),
    click.option("--template", metavar="TEXT", help="Make prompts of columns: 'Continue this review: {text}'."),
)  # fmt: skip

SAMPLING = ("max_new_tokens", "temperature", "top_p", "top_k", "min_p", "stop", "ignore_eos", "seed")


def template_options(command: F) -> F:
    """Add the options that choose chat templates to a command."""
    return _with(command, TEMPLATE_OPTIONS)


def generation_options(command: F) -> F:
    """Add the options of a job that generates, and of its dataset, to a command."""
    return _with(command, GENERATION_OPTIONS + JOB_OPTIONS + INPUT_OPTIONS)


def job_options(command: F) -> F:
    """Add the options of any job, and of its dataset, to a command."""
    return _with(command, JOB_OPTIONS + INPUT_OPTIONS)


def _with(command: F, options: tuple[Callable[[F], F], ...]) -> F:
    for option in reversed(options):
        command = option(command)
    return command


def dataset_of(name: str, options: dict[str, Any]) -> DatasetSource:
    """The dataset that the options describe.

    Raises:
        DatasetError: the template is none, or stands beside a column that would make the prompt too.
    """
    columns = Columns(
        options["prompt_column"],
        options["messages_column"],
        options["id_column"],
        options["response_column"],
        None if options["template"] is None else Template.parse(options["template"]),
    )
    return DatasetSource(name, columns, options["file_format"], options["config"], options["split"])


def submission_of(source: str, options: dict[str, Any]) -> Submission:
    """What the options ask for.

    Raises:
        SpecError: a weight is no number, or a template cannot be read.
    """
    spec = {
        "base": absolute(options["base"]),
        "arms": arms_of(options["arms"], options["arm_templates"], options["arms_on_base"]),
        "samples": options["samples"],
        "sampling": {name: options[name] for name in SAMPLING},
        "system": options["system"],
        "raw": options["raw"],
        "dtype": options["dtype"],
        **rendering_of(options),
    }
    return Submission(
        source=dataset_of(source, options),
        spec=spec,
        name=options["name"],
        priority=options["priority"],
        shard_rows=options["shard_rows"],
        key=options["key"],
        sweep=dict(_sweep(text) for text in options["sweeps"]),
    )


def rendering_of(options: dict[str, Any]) -> dict[str, Any]:
    """What a spec says of chat templates.

    Raises:
        SpecError: a template cannot be read, or the variables are no JSON object.
    """
    template, kwargs = options["chat_template"], options["chat_template_kwargs"]
    try:
        variables = json.loads(kwargs) if kwargs else {}
    except (ValueError, RecursionError) as error:
        raise SpecError(f"--chat-template-kwargs: is no JSON ({error})") from None
    return {
        "chat_template": template_of("--chat-template", template) if template is not None else None,
        "chat_template_kwargs": variables,
        "date": options["date"],
    }


def arms_of(
    named_refs: Sequence[tuple[str, float]], template_files: Sequence[str], on_base: Sequence[str]
) -> list[dict[str, Any]]:
    """ARMs as a spec has them.

    Args:
        named_refs: [NAME=]REF and the weight of each.
        template_files: ARM=FILE, or ARM=NAME.
        on_base: names of ARMs that ride on the base.

    Raises:
        SpecError: a template cannot be read, it or `on_base` is for no ARM, or a reference gives no name.
    """
    templates = dict(_template(pair) for pair in template_files)
    arms = [_arm(ref, weight, templates, on_base) for ref, weight in named_refs]
    names = [arm["name"] for arm in arms]
    if templates:
        raise SpecError(
            f"--arm-template {next(iter(templates))}=…: no ARM has this name (there are: {', '.join(names)})"
        )
    if unknown := sorted(set(on_base) - set(names)):
        raise SpecError(f"--arm-on-base {unknown[0]}: no ARM has this name (there are: {', '.join(names)})")
    return arms


def _sweep(text: str) -> tuple[str, list[float]]:
    name, _, values = text.partition("=")
    try:
        weights = list(dict.fromkeys(float(value) for value in values.split(",")))
    except ValueError:
        raise SpecError(f"--sweep {text}: write ARM=NUMBER,NUMBER,…") from None
    if not all(abs(weight) <= LARGEST_WEIGHT for weight in weights):
        raise SpecError(f"--sweep {text}: weights are finite numbers within ±{LARGEST_WEIGHT:g}")
    return name, weights


def _arm(named_ref: str, weight: float, templates: dict[str, str], on_base: Sequence[str]) -> dict[str, Any]:
    name, ref = _name_and_ref(named_ref)
    return {
        "name": name,
        "ref": absolute(ref),
        "weight": weight,
        "template": templates.pop(name, None),
        "on_base": name in on_base,
    }


def _name_and_ref(named_ref: str) -> tuple[str, str]:
    """An ARM's name and reference: NAME=REF, or a reference, which may itself be a path with `=` in it.

    Without a name it has that of its folder or repository, with `-` for spaces, commas and `=`.
    """
    path = existing_path(named_ref)
    name, separator, ref = named_ref.partition("=")
    if separator and path is None and "/" not in name:
        if NAME.fullmatch(name) is None:
            raise SpecError(f"--arm {named_ref}: {name!r} cannot be an ARM's name: no spaces, commas; write NAME=REF")
        return name, ref
    if separator and path is not None and NAME.fullmatch(name) and existing_path(ref) is not None:
        raise SpecError(f"--arm {named_ref}: may mean two folders; write ./{named_ref}, or {name}=./{ref}")
    last = Path(named_ref) if path is None else path if path.name not in ("", "..") else path.resolve()
    own = SEPARATORS.sub("-", last.name)
    if NAME.fullmatch(own) is None:
        raise SpecError(f"--arm {named_ref}: give the ARM a name of 128 letters at most: NAME=REF")
    return own, named_ref


def _template(pair: str) -> tuple[str, str]:
    name, separator, path = pair.partition("=")
    if not separator:
        raise SpecError(f"--arm-template {pair}: write ARM=FILE, or ARM=NAME")
    return name, template_of(f"--arm-template {name}", path)


def template_of(option: str, given: str) -> str:
    """The chat template in a file, or the name of one of the model's own.

    Raises:
        SpecError: it is neither.
    """
    path = Path(given)
    try:
        return given if is_template_name(given) and not path.exists() else path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise SpecError(f"{option}: {given} cannot be read ({error})") from None


def absolute(ref: str) -> str:
    """A path that exists here, made whole, since the worker runs elsewhere; another reference as it is.

    Raises:
        ModelNotFoundError: a folder on the way to it may not be read.
    """
    path = existing_path(ref)
    return ref if path is None else str(path.resolve())
