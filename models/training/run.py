"""One training run: pairs and a base in, the folder of an ARM with its model card out; stopped and resumed at will."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import set_seed

from models.errors import ModelsError, UnsupportedModelError
from models.loading import Description, describe
from models.training import checkpoint, weights
from models.training.base_rewards import cache_path, compute_rewards, digest_of, with_base_rewards
from models.training.card import Card, Trained, write_card
from models.training.dataset import Data, PairSource, read_data
from models.training.encoding import EncodedPair, PairEncoder
from models.training.settings import TrainingSettings
from models.training.trainer import ArmTrainer, make_trainer, training_arguments
from models.training.watching import Evaluation, Listener
from models.zoo import Placement

FIGURES_FILE = "training.json"


class TrainingStopped(ModelsError):  # noqa: N818  # it was asked for
    """A run ended because it was asked to; its checkpoint goes on with it."""


@dataclass(frozen=True)
class TrainingRun:
    """What to train, on what, and where to."""

    base: str
    """Reference of the model that the ARM is trained from: a hub id, a folder or a .gguf file."""
    pairs: PairSource
    output: Path
    settings: TrainingSettings
    home: Path
    """Converted models are kept under `home/models`, log-probabilities of bases under `home/logprobs`."""
    eval_pairs: PairSource | None = None
    """Held-out pairs; None holds out `settings.eval_fraction` of `pairs`."""
    save_every: int = 50
    """Optimiser steps between two checkpoints; 0: none."""
    resume: bool = False
    """Go on from the checkpoint in `output`, where there is one."""
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


def train_arm(run: TrainingRun, listener: Listener) -> Trained:
    """Train an ARM and write its folder: an adapter or a whole model, README.md and training.json.

    Under `accelerate launch` every process calls this; the main one alone writes and tells the listener.

    Raises:
        PreferencesError: no pair can be used, or none can be held out.
        ModelNotFoundError, UnsupportedModelError: the base cannot be read or trained.
        SpecError: the settings do not fit the base or the processes, or a checkpoint would be destroyed.
        CheckpointError: the checkpoint to go on from is broken, or of another training.
        TrainingStopped: the listener asked for it.
        NotFiniteError: the loss is no number any more.
    """
    arguments = training_arguments(run.settings, run.output)
    if not is_main_process():
        listener = _Silent(listener)
    found = checkpoint.newest(run.output)
    if found is not None and not run.resume:
        raise checkpoint.in_the_way(found)
    weights.require_place(run.output, run.settings)
    base = describe(run.base, run.home)
    if base.adapter is not None:
        raise UnsupportedModelError(f"{run.base}: is an adapter; an ARM is trained from a whole model")
    data = _read(run, base, listener)
    identity = _identity(run, base, data)
    if found is not None:
        checkpoint.require_same(found, identity)
    elif run.resume and (finished := _finished(run, data, identity)) is not None:
        listener.on_note("this training is finished already")
        return finished
    trainer = _trainer(run, base, data, arguments, identity, listener)
    if found is not None:
        trainer.resume(found)
        listener.on_note(f"going on after step {found.step}")
    return _write(run, base, _train(run, data, trainer), trainer)


def is_main_process() -> bool:
    """Whether this process is the one that writes and prints."""
    return bool(PartialState().is_main_process)


def _trainer(
    run: TrainingRun,
    base: Description,
    data: Data,
    arguments: Any,
    identity: dict[str, Any],
    listener: Listener,
) -> ArmTrainer:
    set_seed(run.settings.seed)
    model = weights.load_trainable(base, run.settings, run.declared_base)
    train, held_out = _with_base_rewards(run, base, model.to(arguments.device), data, listener)
    return make_trainer(
        model,
        run.settings,
        train,
        held_out,
        arguments=arguments,
        vocabulary_size=base.vocabulary.size,
        pad_id=base.tokenizer.pad_token_id or 0,
        identity=identity,
        save_every=run.save_every,
        listener=listener,
    )


class _Silent(Listener):
    """Of a process that is not the main one: hears nothing, and can be asked to stop."""

    def __init__(self, listener: Listener) -> None:
        self.stop_requested = listener.stop_requested  # type: ignore[method-assign]


def _read(run: TrainingRun, base: Description, listener: Listener) -> Data:
    encoder = PairEncoder(
        base.tokenizer,
        None if run.settings.raw else base.template,
        max_prompt_tokens=min(run.settings.max_prompt_tokens, base.context_tokens),
        max_tokens=min(run.settings.max_tokens, base.context_tokens),
    )
    counted = partial(listener.on_count, "reading pairs", total=None)
    data = read_data(run.pairs, run.eval_pairs, encoder, run.settings.eval_fraction, run.settings.seed, counted)
    listener.on_data(data)
    return data


def _with_base_rewards(
    run: TrainingRun, base: Description, model: Any, data: Data, listener: Listener
) -> tuple[list[EncodedPair], list[EncodedPair]]:
    """Training and held-out pairs, with the log-probabilities of the base where the objective needs them.

    The model is still the base: nothing has been trained yet.
    """
    if run.settings.objective != "fused":
        return list(data.train), list(data.held_out)
    pairs = [*data.train, *data.held_out]
    dtype = str(Placement.choose("auto", run.settings.dtype).dtype)
    compute = partial(
        compute_rewards,
        model,
        pairs,
        vocabulary_size=base.vocabulary.size,
        pad_id=base.tokenizer.pad_token_id or 0,
        pairs_per_pass=run.settings.pairs_per_pass,
        on_count=lambda done: listener.on_count("log-probabilities of the base", done, len(pairs)),
    )
    path = cache_path(run.home, weights.fingerprint(base.backbone.folder), dtype, pairs)
    with weights.precision(model.device, run.settings):
        pairs = with_base_rewards(pairs, path, compute)
    return pairs[: len(data.train)], pairs[len(data.train) :]


def _identity(run: TrainingRun, base: Description, data: Data) -> dict[str, Any]:
    """What the trained weights depend on."""
    return {
        **run.settings.model_dump(mode="json"),
        "dtype": str(Placement.choose("auto", run.settings.dtype).dtype).removeprefix("torch."),
        "base": weights.fingerprint(base.backbone.folder),
        "training pairs": digest_of(data.train),
        "held-out pairs": digest_of(data.held_out),
        "processes": PartialState().num_processes,
    }


def _train(run: TrainingRun, data: Data, trainer: ArmTrainer) -> Trained:
    """Train, or train on, and leave the model with the weights that are to be kept.

    Raises:
        TrainingStopped: the listener asked for it.
    """
    watch = trainer.watch
    if data.held_out and 0 not in watch.record.evaluations:
        trainer.evaluate()
    state = trainer.train(resume_from_checkpoint=str(trainer.resumed.folder) if trainer.resumed else None)
    steps = state.global_step
    if watch.is_stopped:
        raise TrainingStopped(_stopped(run, steps, trainer.state.max_steps))
    if watch.record.best_step:
        steps = watch.record.best_step
        trainer.accelerator.wait_for_everyone()  # the main process may still write them
        checkpoint.restore(trainer.model, checkpoint.best_weights(run.output, steps))
    if data.held_out and steps not in watch.record.evaluations:
        trainer.evaluate()
    evaluations = watch.record.evaluations
    return Trained(
        run.output, data, evaluations.get(0), evaluations.get(steps), dict(evaluations), steps, watch.seconds
    )


def _stopped(run: TrainingRun, step: int, steps: int) -> str:
    if not run.save_every:
        return f"stopped after step {step} of {steps}; nothing was saved (--save-every 0)"
    return f"stopped and saved after step {step} of {steps}; the same command with --resume goes on"


def _write(run: TrainingRun, base: Description, trained: Trained, trainer: ArmTrainer) -> Trained:
    """Write the folder of an ARM; its checkpoint goes last."""
    if is_main_process():
        weights.save(trainer.model, base, run.output, run.settings)
        card = Card(run.output.resolve().name, run.declared_base, run.about, run.command, run.settings, trained)
        write_card(card, run.output)
        (run.output / FIGURES_FILE).write_text(json.dumps(_figures(trained, trainer.identity), indent=1) + "\n")
        checkpoint.remove(run.output)
    trainer.accelerator.wait_for_everyone()
    return trained


def _figures(trained: Trained, identity: Mapping[str, Any]) -> dict[str, Any]:
    """What scripts want to know of a training."""
    chosen, rejected = trained.data.mean_tokens
    return {
        "training": dict(identity),
        "pairs": [
            {"name": one.name, "sha256": one.sha256, "pairs": len(one.pairs), "left_out": one.problems}
            for one in trained.data.sets
        ],
        "mean_response_tokens": {"chosen": chosen, "rejected": rejected},
        "evaluations": {str(step): asdict(one) for step, one in trained.evaluations.items()},
        "steps": trained.steps,
        "seconds": trained.seconds,
    }


def _finished(run: TrainingRun, data: Data, identity: dict[str, Any]) -> Trained | None:
    """What this very training gave, where it is finished."""
    try:
        figures = json.loads((run.output / FIGURES_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if figures.get("training") != identity:
        return None
    evaluations = {int(step): Evaluation(**one) for step, one in figures["evaluations"].items()}
    steps = figures["steps"]
    return Trained(run.output, data, evaluations.get(0), evaluations.get(steps), evaluations, steps, figures["seconds"])
