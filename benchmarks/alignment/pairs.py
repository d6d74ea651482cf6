"""Preference pairs as every trained baseline sees them: the encoding, batches and order of ARM training."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from db.datasets import DatasetSource, placed_rows
from models.loading import Description
from models.training import dataset
from models.training.encoding import EncodedPair, PairEncoder, collate
from models.training.objective import preference_loss
from models.training.trainer import SortedBatches

MICRO_BATCH = 4
CHECKPOINT_STEPS = 5
HELD_OUT = "held_out.json"


@dataclass(frozen=True)
class Pair:
    """A pair, and what the reference model says of it."""

    encoded: EncodedPair
    reference: tuple[float, float] = (0.0, 0.0)
    """Log-probabilities of chosen and rejected, summed; DPO alone needs them."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast a baseline is trained; otherwise as ARMs are."""

    beta: float
    learning_rate: float
    epochs: int
    batch: int = 16
    warmup: float = 0.1
    weight_decay: float = 0.05
    lora_rank: int = 8
    lora_alpha: float = 16.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    seed: int = 0


def read_pairs(path: Path, base: Description) -> list[EncodedPair]:
    """The usable pairs of a file, encoded as ARM training encodes them."""
    encoder = PairEncoder(base.tokenizer, base.template, max_prompt_tokens=512, max_tokens=1024)
    source = dataset.PairSource(path.name, placed_rows(DatasetSource(str(path))))
    return list(dataset.read_pairs(source, encoder).pairs)


def batch_of(pairs: Sequence[Pair]) -> dict[str, Tensor]:
    """A padded batch: the chosen responses, then the rejected ones; `reference` float32 [2 · pairs] in that order."""
    batch = collate([pair.encoded for pair in pairs], pad_id=0)
    batch["reference"] = torch.tensor([pair.reference for pair in pairs]).T.reshape(-1)
    return batch


class PairTrainer(Trainer):  # type: ignore[misc]  # transformers is not typed
    """transformers' Trainer with the Bradley-Terry loss; a subclass says what a response is worth."""

    loss_is_scaled_for_ga = False  # the loss is a mean over a micro-batch

    def __init__(self, *, schedule: Schedule, **others: Any) -> None:
        self.schedule = schedule
        super().__init__(**others)

    def worth(self, model: Any, batch: dict[str, Tensor]) -> Tensor:
        """float32 [rows]."""
        raise NotImplementedError

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], *_: Any, **__: Any) -> Tensor:
        """−log σ(β · (worth of chosen − worth of rejected)), its mean."""
        margins = self.margins(model, inputs)
        return preference_loss(margins, torch.zeros_like(margins), self.schedule.beta)

    def margins(self, model: Any, batch: dict[str, Tensor]) -> Tensor:
        """Worth of chosen − worth of rejected, float32 [pairs]."""
        is_bfloat16 = next(model.parameters()).dtype is torch.bfloat16
        with torch.autocast("cpu", torch.bfloat16, enabled=is_bfloat16):  # the adapter's own weights are float32
            chosen, rejected = self.worth(model, batch).chunk(2)
        return chosen - rejected

    def judge(self, pairs: Sequence[Pair]) -> dict[str, float]:
        """Over held-out pairs: how many, the mean loss, and the share whose chosen response is worth more."""
        self.model.eval()
        ordered = sorted(pairs, key=lambda pair: pair.encoded.tokens)
        parts = [ordered[start : start + 2 * MICRO_BATCH] for start in range(0, len(ordered), 2 * MICRO_BATCH)]
        with torch.no_grad():
            margin = torch.cat([self.margins(self.model, batch_of(part)) for part in parts])
        loss = float(preference_loss(margin, torch.zeros_like(margin), self.schedule.beta))
        return {"pairs": len(pairs), "loss": loss, "accuracy": float((margin > 0).float().mean())}

    def _get_train_sampler(self, train_dataset: Any = None) -> SortedBatches:
        pairs = train_dataset if train_dataset is not None else self.train_dataset
        return SortedBatches([pair.encoded.tokens for pair in pairs], self.schedule.batch, self.schedule.seed)


def train(kind: type[PairTrainer], model: Any, schedule: Schedule, pairs: Sequence[Pair], folder: Path) -> PairTrainer:
    """Train a model; a run that was killed goes on at its last checkpoint in `folder`."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=min(MICRO_BATCH, schedule.batch),
        gradient_accumulation_steps=max(1, schedule.batch // MICRO_BATCH),
        num_train_epochs=schedule.epochs,
        learning_rate=schedule.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=schedule.warmup,
        weight_decay=schedule.weight_decay,
        seed=schedule.seed,
        save_steps=CHECKPOINT_STEPS,
        save_total_limit=1,
        logging_steps=CHECKPOINT_STEPS,
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    trainer = kind(schedule=schedule, model=model, args=arguments, train_dataset=list(pairs), data_collator=batch_of)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)))
    return trainer
