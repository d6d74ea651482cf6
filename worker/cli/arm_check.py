"""`genarm arm check`: whether ARMs fit a base, what they cost, and one guided sample."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from models.units import readable_size
from worker.announcing import telling
from worker.cli import console
from worker.cli.errors import Exit
from worker.cli.options import absolute, arms_of, json_option, template_of, template_options
from worker.settings import Settings

if TYPE_CHECKING:
    from models.completion import Completion
    from models.fitting import ArmFit, Cost, Fit

PROMPT = "Write a short message to a friend."


@click.command()
@click.argument("base")
@click.argument("arms", metavar="[NAME=]ARM...", nargs=-1, required=True)
@click.option("--weight", type=float, default=1.0, show_default=True, help="w of each ARM in the sample.")
@click.option("--prompt", default=PROMPT, show_default=True, help="Of the sample.")
@click.option("--max-new-tokens", type=int, default=48, show_default=True, help="Of the sample.")
@click.option("--no-sample", is_flag=True, help="Read no weights.")
@template_options
@click.option("--arm-on-base", "arms_on_base", multiple=True, metavar="NAME", help="This ARM is an adapter of BASE.")
@click.option("--device", default=None, help="Where the models run: auto, cpu, cuda or cuda:N.")
@click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), default="auto",
              show_default=True, help="Precision.")  # fmt: skip
@json_option
@click.pass_context
def check(
    context: click.Context,
    /,
    base: str,
    arms: tuple[str, ...],
    no_sample: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Check that ARMs fit a base: tokenizer, templates, shared weights, memory and passes, and one guided sample.

    The exit code is 0 only where all of them fit.

    \b
    Example:
        genarm arm check HuggingFaceTB/SmolLM2-135M-Instruct examples/arms/positive
        genarm arm check ./model mine=examples/arms/positive --no-sample --json
    """
    from models.fitting import fit
    from models.spec import GenerationSpec
    from models.zoo import Placement

    settings, template = Settings(), options["chat_template"]
    spec = GenerationSpec.parse(
        {
            "base": absolute(base),
            "arms": arms_of(
                [(arm, options["weight"]) for arm in arms], options["arm_templates"], options["arms_on_base"]
            ),
            "sampling": {"max_new_tokens": options["max_new_tokens"]},
            "dtype": options["dtype"],
            "chat_template": template and template_of("--chat-template", template),
        }
    )
    chosen = options["dtype"] if options["dtype"] != "auto" else settings.dtype
    with telling(console.note):
        placement = Placement.choose(options["device"] or settings.device, chosen, settings.use_kernels)
    with console.status("Reading the models"):
        found = fit(spec, settings.home, placement.dtype)
    sample = None
    if found.fits and not no_sample:
        with console.status("Generating a sample"), telling(console.note):
            sample = _sample(spec, settings, str(placement.device), options["prompt"])
    dtype = str(placement.dtype).removeprefix("torch.")
    if as_json:
        console.out_json(_facts(found, dtype, sample))
    else:
        for line in _lines(base, found, dtype, sample):
            console.out(line)
    if not found.fits:
        for arm in found.arms:
            if arm.problem is not None:
                console.error(arm.problem)
        context.exit(Exit.FAILURE)


def _sample(spec: Any, settings: Settings, device: str, prompt: str) -> "Completion":
    from models.engine import Engine, EngineSettings
    from models.spec import PromptRow

    engine = Engine(
        EngineSettings(
            home=settings.home,
            device=device,
            dtype=settings.dtype,
            max_running=1,
            use_kernels=settings.use_kernels,
        )
    )
    engine.start()
    try:
        completions = engine.submit(engine.load(spec), PromptRow.parse({"prompt": prompt}, 0, spec)).result()
        return completions[0]
    finally:
        engine.stop()


def _lines(base: str, found: "Fit", dtype: str, sample: "Completion | None") -> Iterator[str]:
    yield f"base {base}: {_cost(found.cost, dtype)}, {found.base.context_tokens} tokens of context"
    for arm in found.arms:
        yield from _arm_lines(arm, found, dtype)
    weights, cache = readable_size(found.weight_bytes), readable_size(found.kv_bytes_per_token)
    yield (
        f"together: {weights} of weights, {cache} of KV cache per token, "
        f"{found.passes_per_token} forward {'pass' if found.passes_per_token == 1 else 'passes'} per token "
        f"({found.compute_ratio:.2f} times the base's arithmetic)"
    )
    if sample is not None:
        kl = sum(sample.logprobs) - sum(sample.base_logprobs)
        rewards = ", ".join(f"{name} {sum(values):.1f}" for name, values in sample.token_rewards.items())
        yield f"sample ({len(sample.tokens)} tokens, rewards: {rewards}; KL {kl:.1f} nats):"
        yield f"  {' '.join(sample.text.split())}"


def _arm_lines(arm: "ArmFit", found: "Fit", dtype: str) -> Iterator[str]:
    if arm.problem is not None:
        yield f"ARM {arm.name}: does not fit"
        return
    weights = f"rides on {Path(arm.rides_on).name}" if arm.rides_on is not None else "has weights of its own"
    tokens = len(found.base.vocabulary.tokens)
    shared = "all tokens" if arm.shared_tokens == tokens else f"{arm.shared_tokens} of the base's {tokens} tokens"
    template = {"own": "its own template", "backbone": "its backbone's template", "given": "the template given"}
    yield (
        f"ARM {arm.name}: fits; {weights}, {_cost(arm.cost, dtype)}; shares {shared}; "
        f"{template.get(arm.template, 'no template')}"
    )
    for remark in arm.remarks:
        yield f"  note: it {remark}"


def _cost(cost: "Cost", dtype: str) -> str:
    weights, cache = readable_size(cost.weight_bytes), readable_size(cost.kv_bytes_per_token)
    return f"{weights} of weights in {dtype}, {cache} of KV cache per token"


def _facts(found: "Fit", dtype: str, sample: "Completion | None") -> dict[str, Any]:
    arms = [
        {
            **{name: value for name, value in vars(arm).items() if name != "cost"},
            "fits": arm.problem is None,
            **vars(arm.cost),
        }
        for arm in found.arms
    ]
    return {
        "fits": found.fits,
        "dtype": dtype,
        "base": {**vars(found.cost), "context_tokens": found.base.context_tokens},
        "arms": arms,
        "weight_bytes": found.weight_bytes,
        "kv_bytes_per_token": found.kv_bytes_per_token,
        "passes_per_token": found.passes_per_token,
        "compute_ratio": found.compute_ratio,
        "context_tokens": found.context_tokens,
        "sample": sample
        and {
            "completion": sample.text,
            "tokens": len(sample.tokens),
            "rewards": {name: sum(values) for name, values in sample.token_rewards.items()},
            "kl": sum(sample.logprobs) - sum(sample.base_logprobs),
        },
    }
