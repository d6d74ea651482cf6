"""Training an autoregressive reward model: transformers' Trainer with our objective, order of pairs and checkpoints."""

import random
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler
from transformers import PrinterCallback, Trainer, TrainingArguments

from models.training import checkpoint
from models.training.encoding import EncodedPair, collate
from models.training.objective import fused_scores, preference_loss, sequence_rewards
from models.training.settings import TrainingSettings
from models.training.watching import Evaluation, Listener, Record, Watch
from models.training.weights import precision

FIGURES = ("loss", "accuracy", "margin", "chosen_reward", "rejected_reward")


class ArmTrainer(Trainer):  # type: ignore[misc]  # transformers is not typed
    """transformers' Trainer whose loss is the preference objective, and whose checkpoints are ours.

    Datasets are sequences of EncodedPair, batches those of `collate`. Each log entry of training carries the pair
    accuracy and the margin since the last one.

    Args:
        settings: objective and batches.
        vocabulary_size: ids at and above it are padding of the LM head.
        identity: what the trained weights depend on, JSON values; a checkpoint of another identity is refused.
        watch: decides when to evaluate, save and stop; it is one of the callbacks.
        others: the arguments of transformers' Trainer.
    """

    loss_is_scaled_for_ga = True  # compute_loss divides by the pairs of the whole step

    def __init__(
        self,
        *,
        settings: TrainingSettings,
        vocabulary_size: int,
        identity: Mapping[str, Any],
        watch: Watch,
        **others: Any,
    ) -> None:
        self.settings = settings
        self.vocabulary_size = vocabulary_size
        self.identity = identity
        self.watch = watch
        self.resumed: checkpoint.Checkpoint | None = None
        self._since_log: list[Tensor] = []
        super().__init__(callbacks=[watch], **others)
        self.remove_callback(PrinterCallback)

    def scores(self, model: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """What the objective compares and the rewards, float32 [pairs, 4]: scores and rewards of chosen, rejected."""
        inputs = {name: tensor for name, tensor in batch.items() if name != "base_rewards"}
        with precision(self.args.device, self.settings):
            rewards = sequence_rewards(model, **inputs, vocabulary_size=self.vocabulary_size)
        scores = rewards
        if self.settings.objective == "fused":
            tokens = batch["response_mask"].sum(1)
            scores = fused_scores(rewards, batch["base_rewards"], tokens, self.settings.fused_weight)
        return torch.cat([scores.view(2, -1), rewards.view(2, -1)]).T

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The share of one micro-batch in the objective of its step."""
        scores = self.scores(model, inputs)
        self._since_log.append(scores.detach())
        loss = preference_loss(scores[:, 0], scores[:, 1], self.settings.beta, self.settings.margin)
        if num_items_in_batch is not None:
            # DistributedDataParallel takes the mean over processes.
            loss = loss * len(scores) * self.accelerator.num_processes / num_items_in_batch
        return (loss, scores) if return_outputs else loss

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor:
        """Pairs of a step, over all processes: a last micro-batch that is short weighs no more than its pairs."""
        pairs = sum(len(batch["input_ids"]) // 2 for batch in batch_samples)
        total: Tensor = self.accelerator.reduce(torch.tensor(float(pairs), device=device), "sum")
        return total

    def prediction_step(
        self, model: Any, inputs: dict[str, Tensor], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[None, Tensor, Tensor]:
        """Scores of one evaluation batch, [pairs, 4], where Trainer expects logits and labels."""
        with torch.no_grad():
            scores = self.scores(model, self._prepare_inputs(inputs))
        return None, scores, scores

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what the scores since the last entry say to a log entry of training."""
        if "loss" in logs:
            scores = torch.cat(self._since_log)
            ahead, margins = (scores[:, 0] > scores[:, 1]).sum(), (scores[:, 0] - scores[:, 1]).sum()
            mine = torch.stack([ahead.float(), margins, torch.tensor(float(len(scores)), device=scores.device)])
            accuracy, margin, pairs = self.accelerator.reduce(mine, "sum").tolist()
            logs |= {"accuracy": accuracy / pairs, "margin": margin / pairs}
            self._since_log.clear()
        super().log(logs, start_time)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        pairs = train_dataset if train_dataset is not None else self.train_dataset
        return SortedBatches([pair.tokens for pair in pairs], self.settings.batch, self.settings.seed)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint of ours, in the main process; the others wait."""
        if self.args.should_save:
            optimizer = self.optimizer.state_dict()
            checkpoint.write(
                Path(self.args.output_dir),
                self.state.global_step,
                {
                    "weights": checkpoint.trainable(self.model),
                    "optimizer": checkpoint.optimizer_tensors(optimizer),
                    "rng": checkpoint.random_state(),
                },
                {
                    checkpoint.FACTS: {
                        "identity": dict(self.identity),
                        "optimizer": optimizer["param_groups"],
                        "schedule": self.lr_scheduler.state_dict(),
                        "record": self.watch.record.as_json() | {"seconds": self.watch.seconds},
                    },
                    checkpoint.TRAINER_STATE: vars(self.state) | {"log_history": []},
                },
                self.watch.record.best_step,
            )
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        assert self.resumed is not None
        checkpoint.restore(self.model, self.resumed.tensors("weights"))

    def _load_optimizer_and_scheduler(self, checkpoint_folder: str | None) -> None:
        if self.resumed is None:
            return
        groups, tensors = self.resumed.facts["optimizer"], self.resumed.tensors("optimizer")
        self.optimizer.load_state_dict(checkpoint.optimizer_state(groups, tensors))
        self.lr_scheduler.load_state_dict(self.resumed.facts["schedule"])

    def _load_rng_state(self, checkpoint_folder: str | None) -> None:
        if self.resumed is not None:
            checkpoint.set_random_state(self.resumed.tensors("rng"))

    def resume(self, found: checkpoint.Checkpoint) -> None:
        """Go on from a checkpoint when `train` is called."""
        self.resumed = found
        self.watch.record = Record.from_json(found.facts["record"])


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


def reward_metrics(scores: np.ndarray, settings: TrainingSettings) -> dict[str, float]:
    """Figures over pairs.

    Args:
        scores: [pairs, 4]: what the objective compares and the rewards, each of chosen and rejected.
    """
    chosen, rejected, chosen_reward, rejected_reward = torch.from_numpy(scores).double().unbind(1)
    return {
        "loss": float(preference_loss(chosen, rejected, settings.beta, settings.margin)),
        "accuracy": float((chosen > rejected).double().mean()),
        "margin": float((chosen - rejected).mean()),
        "chosen_reward": float(chosen_reward.mean()),
        "rejected_reward": float(rejected_reward.mean()),
    }


def training_arguments(settings: TrainingSettings, output: Path) -> TrainingArguments:
    """The settings as transformers' Trainer has them; this sets up the processes, where there are several.

    Raises:
        SpecError: a batch cannot be shared out among them.
    """
    arguments = TrainingArguments(
        output_dir=str(output),
        per_device_train_batch_size=settings.pairs_per_pass,
        per_device_eval_batch_size=settings.pairs_per_pass,
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup,
        weight_decay=settings.weight_decay,
        activation_checkpointing=settings.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False} if settings.gradient_checkpointing else None,
        use_cpu=not torch.cuda.is_available(),
        seed=settings.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    arguments.gradient_accumulation_steps = settings.passes_per_step(arguments.world_size)
    if arguments.n_gpu > 1:  # several GPUs in one process would be torch's DataParallel, which hooks do not survive
        arguments._n_gpu = 1
    return arguments


def make_trainer(
    model: Any,
    settings: TrainingSettings,
    pairs: Sequence[EncodedPair],
    eval_pairs: Sequence[EncodedPair],
    *,
    arguments: TrainingArguments,
    vocabulary_size: int,
    pad_id: int,
    identity: Mapping[str, Any],
    save_every: int,
    listener: Listener,
) -> ArmTrainer:
    """A trainer that is ready to `train()` and `evaluate()`; it prints nothing, and writes checkpoints alone.

    Args:
        model: what `load_trainable` gave.
        settings: objective, optimiser and batches.
        pairs: to train on.
        eval_pairs: held out; may be empty.
        arguments: what `training_arguments` made of the settings.
        vocabulary_size: ids at and above it are padding of the LM head.
        pad_id: any token id; padded positions are masked.
        identity: what the trained weights depend on, JSON values.
        save_every: steps between two checkpoints; 0: none.
        listener: told of every step and evaluation.
    """
    count = len(eval_pairs)
    watch = Watch(
        settings,
        save_every,
        Path(arguments.output_dir),
        listener,
        lambda metrics: Evaluation(count, **{name: metrics[f"eval_{name}"] for name in FIGURES}),
    )
    return ArmTrainer(
        settings=settings,
        vocabulary_size=vocabulary_size,
        identity=identity,
        watch=watch,
        model=model,
        args=arguments,
        train_dataset=list(pairs),
        eval_dataset=sorted(eval_pairs, key=lambda pair: pair.tokens),
        data_collator=partial(collate, pad_id=pad_id),
        compute_metrics=lambda prediction: reward_metrics(prediction.predictions, settings),
    )
