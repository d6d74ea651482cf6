"""Direct preference optimisation (arXiv 2305.18290): the baseline that changes the base's own weights.

The worth of a response is log π(y|x) − log π_base(y|x). Base, pairs, rank, targets, batches and epochs are the ARM's.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from transformers import set_seed

from benchmarks.alignment.loading import load_base
from benchmarks.alignment.pairs import HELD_OUT, MICRO_BATCH, Pair, PairTrainer, Schedule, batch_of, train
from models.loading import Description
from models.training.encoding import EncodedPair
from models.training.objective import sequence_rewards


class DPOTrainer(PairTrainer):
    """PairTrainer whose worth is the log-ratio to the reference."""

    def worth(self, model: Any, batch: dict[str, Tensor]) -> Tensor:
        """float32 [rows]."""
        return summed_logprobs(model, batch) - batch["reference"]


def summed_logprobs(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Σ log π(y_t | x, y_<t) over each row's response, float32 [rows]."""
    size = model.get_input_embeddings().num_embeddings
    return sequence_rewards(model, batch["input_ids"], batch["attention_mask"], batch["response_mask"], size)


def reference_rows(base: Description, pairs: Sequence[EncodedPair]) -> list[dict[str, float]]:
    """What the base says of each pair, once, before training."""
    return pair_rows(load_base(base), pairs)


def pair_rows(model: Any, pairs: Sequence[EncodedPair]) -> list[dict[str, float]]:
    """Σ log π of both responses of each pair, as `chosen` and `rejected`, in the order of the pairs."""
    order = sorted(range(len(pairs)), key=lambda index: pairs[index].tokens)
    rows: list[dict[str, float]] = [{} for _ in pairs]
    for start in range(0, len(order), 2 * MICRO_BATCH):
        places = order[start : start + 2 * MICRO_BATCH]
        with torch.no_grad():
            summed = summed_logprobs(model, batch_of([Pair(pairs[place]) for place in places]))
        for place, chosen, rejected in zip(places, *summed.view(2, -1).tolist(), strict=True):
            rows[place] = {"chosen": chosen, "rejected": rejected}
    return rows


def lora(model: Any, schedule: Schedule, task: str) -> Any:
    """A LoRA adapter around a frozen model, of the ARM's rank and targets."""
    settings = LoraConfig(
        task_type=task,
        r=schedule.lora_rank,
        lora_alpha=schedule.lora_alpha,
        lora_dropout=0.0,
        target_modules=list(schedule.targets),
    )
    adapted = get_peft_model(model, settings)
    for module in adapted.modules():
        if isinstance(module, BaseTunerLayer):
            module.cast_input_dtype_enabled = False  # PairTrainer computes in bfloat16 what is kept in float32
    return adapted


def train_dpo(
    base: Description, hub_id: str, pairs: Sequence[Pair], held_out: Sequence[Pair], schedule: Schedule, folder: Path
) -> None:
    """Write the adapter's folder, with held_out.json: how well it tells held-out pairs apart."""
    set_seed(schedule.seed)
    model = lora(load_base(base), schedule, "CAUSAL_LM")
    model.peft_config["default"].base_model_name_or_path = hub_id
    trainer = train(DPOTrainer, model, schedule, pairs, folder)
    (folder / HELD_OUT).write_text(json.dumps(trainer.judge(held_out)))
    model.save_pretrained(str(folder), save_embedding_layers=False)
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
