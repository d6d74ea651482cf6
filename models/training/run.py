"""One training run from files to files: pairs and a base in, an adapter folder with its model card out."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, set_seed

from models.errors import SpecError, UnsupportedModelError, first_line
from models.loading import Description, describe
from models.training.card import Card, write_card
from models.training.dataset import Data, read_data
from models.training.encoding import PairEncoder
from models.training.settings import TrainingSettings
from models.training.trainer import Evaluation, Step, evaluate, make_trainer
from models.zoo import Placement


@dataclass(frozen=True)
class TrainingRun:
    """What to train, on what, and where to."""

    base: str
    """Reference of the model that the ARM is an adapter of: a hub id, a folder or a .gguf file."""
    pairs: Path
    output: Path
    settings: TrainingSettings
    home: Path
    """Converted models are kept under `home/models`."""
    eval_pairs: Path | None = None
    """Held-out pairs; None holds out `settings.eval_fraction` of `pairs`."""
    base_name: str | None = None
    """The base's name in the adapter's files, best a hub id, which means something elsewhere too; None: `base`."""
    about: str = ""
    """What the pairs prefer, for the model card."""
    command: str = ""
    """The command that runs this, for the model card."""

    @property
    def declared_base(self) -> str:
        """What the adapter says that it was trained on."""
        path = Path(self.base).expanduser()
        return self.base_name or (str(path.resolve()) if path.exists() else self.base)


@dataclass(frozen=True)
class Trained:
    """What a run gave."""

    output: Path
    data: Data
    before: Evaluation | None
    """The base itself as a reward model; None without held-out pairs."""
    after: Evaluation | None
    steps: int
    seconds: float


def train_arm(run: TrainingRun, on_data: Callable[[Data], None], on_step: Callable[[Step], None]) -> Trained:
    """Train an ARM and write its folder: adapter_config.json, adapter_model.safetensors and README.md.

    Args:
        run: what to train.
        on_data: called once, when the pairs have been read and checked.
        on_step: called after every optimiser step.

    Raises:
        PreferencesError: the pairs cannot be read, or none can be used.
        ModelNotFoundError, UnsupportedModelError: the base cannot be read or trained.
        SpecError: the base has no layers of the names in `settings.targets`.
    """
    base = describe(run.base, run.home)
    if base.adapter is not None:
        raise UnsupportedModelError(f"{run.base}: is an adapter; an ARM is trained on a whole model")
    data = read_data(
        run.pairs, run.eval_pairs, _encoder(base, run.settings), run.settings.eval_fraction, run.settings.seed
    )
    on_data(data)
    set_seed(run.settings.seed)
    model = add_adapter(load_frozen(base, run.settings), run)
    trainer = make_trainer(
        model,
        run.settings,
        data.train,
        data.held_out,
        vocabulary_size=base.vocabulary.size,
        pad_id=base.tokenizer.pad_token_id or 0,
        output=run.output,
        on_step=on_step,
    )
    started = time.monotonic()
    before = evaluate(trainer) if data.held_out else None
    steps = trainer.train().global_step
    after = evaluate(trainer) if data.held_out else None
    model.save_pretrained(str(run.output), save_embedding_layers=False)
    trained = Trained(run.output, data, before, after, steps, time.monotonic() - started)
    write_card(_card(run, trained), run.output)
    return trained


def load_frozen(base: Description, settings: TrainingSettings) -> Any:
    """The base's weights, frozen, without dropout, as a transformers causal language model.

    Raises:
        UnsupportedModelError: transformers cannot load them.
    """
    dtype = Placement.choose("auto", settings.dtype).dtype
    config = without_dropout(base.config)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            base.backbone.folder, config=config, dtype=dtype, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise UnsupportedModelError(f"{base.source.ref}: its weights cannot be loaded ({first_line(error)})") from None
    return model.requires_grad_(False)


def without_dropout(config: Any) -> Any:
    """A copy of a transformers configuration in which every dropout probability is zero."""
    zeros = {name: 0.0 for name, value in vars(config).items() if _is_dropout(name) and isinstance(value, float)}
    return type(config).from_dict({**config.to_dict(), **zeros})


def _is_dropout(name: str) -> bool:
    return "dropout" in name or name.endswith("pdrop")


def add_adapter(model: nn.Module, run: TrainingRun) -> Any:
    """A LoRA adapter around frozen weights, without dropout; its own weights are float32.

    Raises:
        SpecError: the model has no layers of the names in `settings.targets`.
    """
    settings = run.settings
    linear = sorted({name.rpartition(".")[2] for name, part in model.named_modules() if hasattr(part, "in_features")})
    if unknown := sorted(set(settings.targets) - set(linear)):
        raise SpecError(
            f"targets: the model has no linear layer named {', '.join(unknown)}; it has {', '.join(linear)}"
        )
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=0.0,
        target_modules=list(settings.targets),
    )
    adapted = get_peft_model(model, lora)
    adapted.peft_config["default"].base_model_name_or_path = run.declared_base
    return adapted


def _encoder(base: Description, settings: TrainingSettings) -> PairEncoder:
    return PairEncoder(
        base.tokenizer,
        base.template,
        max_prompt_tokens=min(settings.max_prompt_tokens, base.context_tokens),
        max_tokens=min(settings.max_tokens, base.context_tokens),
    )


def _card(run: TrainingRun, trained: Trained) -> Card:
    return Card(
        name=run.output.resolve().name,
        base=run.declared_base,
        about=run.about,
        command=run.command,
        settings=run.settings,
        data=trained.data,
        before=trained.before,
        after=trained.after,
        steps=trained.steps,
        seconds=trained.seconds,
    )
