"""Training an autoregressive reward model: transformers' Trainer with the preference objective over a LoRA adapter."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from models.training.encoding import EncodedPair, collate
from models.training.objective import preference_loss, sequence_rewards
from models.training.settings import TrainingSettings


@dataclass(frozen=True)
class Step:
    """Where a training run stands after an optimiser step; the figures are of that step's own pairs."""

    step: int
    steps: int
    loss: float
    accuracy: float
    margin: float


@dataclass(frozen=True)
class Evaluation:
    """How well rewards tell chosen from rejected; rewards are log-probabilities in nats, summed over a response."""

    pairs: int
    loss: float
    accuracy: float
    """Share of the pairs whose chosen response has the higher reward."""
    margin: float
    """Mean of chosen reward − rejected reward."""
    chosen_reward: float
    rejected_reward: float


class ArmTrainer(Trainer):  # type: ignore[misc]  # transformers is not typed
    """transformers' Trainer whose loss is the preference objective.

    Datasets are sequences of EncodedPair, batches those of `collate`. Each log entry of training carries the pair
    accuracy, the reward margin, and the rewards of chosen and rejected since the last one.

    Args:
        settings: objective and batches.
        vocabulary_size: ids at and above it are padding of the LM head.
        others: the arguments of transformers' Trainer.
    """

    loss_is_scaled_for_ga = False  # the loss is a mean over a micro-batch

    def __init__(self, *, settings: TrainingSettings, vocabulary_size: int, **others: Any) -> None:
        self.settings = settings
        self.vocabulary_size = vocabulary_size
        self._rewards_since_log: list[Tensor] = []
        super().__init__(**others)

    def rewards(self, model: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """Rewards of a batch of pairs, float32 [pairs, 2]: chosen, rejected."""
        rewards = sequence_rewards(model, **batch, vocabulary_size=self.vocabulary_size)
        return rewards.view(2, -1).T

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The objective over one micro-batch."""
        rewards = self.rewards(model, inputs)
        self._rewards_since_log.append(rewards.detach())
        loss = preference_loss(rewards[:, 0], rewards[:, 1], self.settings.beta)
        return (loss, rewards) if return_outputs else loss

    def prediction_step(
        self, model: Any, inputs: dict[str, Tensor], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[None, Tensor, Tensor]:
        """Rewards of one evaluation batch, [pairs, 2], where Trainer expects logits and labels."""
        with torch.no_grad():
            rewards = self.rewards(model, self._prepare_inputs(inputs))
        return None, rewards, rewards

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what the rewards since the last entry say to a log entry of training."""
        if "loss" in logs and self._rewards_since_log:
            rewards = torch.cat(self._rewards_since_log).cpu().numpy()
            logs.update(reward_metrics(rewards, self.settings.beta) | {"loss": logs["loss"]})
            self._rewards_since_log.clear()
        super().log(logs, start_time)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        pairs = train_dataset if train_dataset is not None else self.train_dataset
        return SortedBatches([pair.tokens for pair in pairs], self.settings.batch, self.settings.seed)


class SortedBatches(Sampler[int]):
    """A random order whose batches are sorted by length, so that micro-batches hold pairs of about one length.

    Which pairs share a batch is random all the same. The order depends on the seed and the epoch alone.

    Args:
        lengths: tokens of each pair.
        batch: pairs per optimiser step.
        seed: of the order.
    """

    def __init__(self, lengths: Sequence[int], batch: int, seed: int) -> None:
        self.lengths = lengths
        self.batch = batch
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        order = list(range(len(self.lengths)))
        random.Random(f"{self.seed}/{self.epoch}").shuffle(order)
        for start in range(0, len(order), self.batch):
            yield from sorted(order[start : start + self.batch], key=lambda index: self.lengths[index])


class StepReports(TrainerCallback):  # type: ignore[misc]  # as above
    """Tells a listener of every optimiser step."""

    def __init__(self, listener: Callable[[Step], None]) -> None:
        self.listener = listener

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Report a log entry, if it is one of training."""
        if logs and "loss" in logs:
            figures = {name: logs[name] for name in ("loss", "accuracy", "margin")}
            self.listener(Step(state.global_step, state.max_steps, **figures))


def reward_metrics(rewards: np.ndarray, beta: float) -> dict[str, float]:
    """Figures over pairs.

    Args:
        rewards: [pairs, 2], chosen and rejected.
        beta: β_r.
    """
    chosen, rejected = torch.from_numpy(rewards).double().unbind(1)
    return {
        "loss": float(preference_loss(chosen, rejected, beta)),
        "accuracy": float((chosen > rejected).double().mean()),
        "margin": float((chosen - rejected).mean()),
        "chosen_reward": float(chosen.mean()),
        "rejected_reward": float(rejected.mean()),
    }


def make_trainer(
    model: Any,
    settings: TrainingSettings,
    pairs: Sequence[EncodedPair],
    eval_pairs: Sequence[EncodedPair],
    *,
    vocabulary_size: int,
    pad_id: int,
    output: Path,
    on_step: Callable[[Step], None] | None = None,
) -> ArmTrainer:
    """A trainer that is ready to `train()` and `evaluate()`; it prints nothing and writes nothing by itself.

    Args:
        model: a PEFT model on the device where it is to be trained.
        settings: objective, optimiser and batches.
        pairs: to train on.
        eval_pairs: held out; may be empty.
        vocabulary_size: ids at and above it are padding of the LM head.
        pad_id: any token id; padded positions are masked.
        output: folder of the run.
        on_step: called after every optimiser step.
    """
    arguments = TrainingArguments(
        output_dir=str(output),
        per_device_train_batch_size=settings.pairs_per_pass,
        per_device_eval_batch_size=settings.pairs_per_pass,
        gradient_accumulation_steps=settings.batch // settings.pairs_per_pass,
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup,
        weight_decay=settings.weight_decay,
        seed=settings.seed,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    trainer = ArmTrainer(
        settings=settings,
        vocabulary_size=vocabulary_size,
        model=model,
        args=arguments,
        train_dataset=list(pairs),
        eval_dataset=sorted(eval_pairs, key=lambda pair: pair.tokens),
        data_collator=partial(collate, pad_id=pad_id),
        compute_metrics=lambda prediction: reward_metrics(prediction.predictions, settings.beta),
        callbacks=[StepReports(on_step)] if on_step else None,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def evaluate(trainer: ArmTrainer) -> Evaluation:
    """Figures of the model as it is now over the trainer's held-out pairs."""
    metrics = trainer.evaluate()
    names = ("loss", "accuracy", "margin", "chosen_reward", "rejected_reward")
    return Evaluation(pairs=len(trainer.eval_dataset), **{name: metrics[f"eval_{name}"] for name in names})
