"""The trajectory reward model of best-of-n and ARGS: a scalar head on the base, trained with LoRA on the same pairs.

A response's score is read after its last token; a finished response is scored after the token that closes it.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, set_seed

from benchmarks.alignment.dpo import lora
from benchmarks.alignment.loading import ATTENTION
from benchmarks.alignment.pairs import HELD_OUT, Pair, PairTrainer, Schedule, train
from models.loading import Description

HEAD = "head.safetensors"


class RewardModel(nn.Module):
    """A decoder without its LM head, and a linear map from its hidden states to one number."""

    def __init__(self, backbone: Any, hidden_size: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(hidden_size, 1, bias=False)
        nn.init.normal_(self.head.weight, std=1 / hidden_size**0.5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Scores of responses, float32 [rows], from [rows, length] padded on the right."""
        states = self.backbone(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        last = attention_mask.sum(1) - 1
        return self.score(states[torch.arange(len(last)), last])

    def score(self, states: Tensor) -> Tensor:
        """[..., hidden] to float32 [...]."""
        with torch.autocast("cpu", enabled=False):
            scores: Tensor = self.head(states.float())[..., 0]
        return scores


class RewardTrainer(PairTrainer):
    """PairTrainer whose worth is the reward model's score."""

    def worth(self, model: Any, batch: dict[str, Tensor]) -> Tensor:
        """float32 [rows]."""
        scores: Tensor = model(batch["input_ids"], batch["attention_mask"])
        return scores


def load_backbone(base: Description, dtype: torch.dtype = torch.bfloat16) -> Any:
    """The base without its LM head, frozen."""
    model = AutoModel.from_pretrained(
        base.backbone.folder, dtype=dtype, use_safetensors=True, attn_implementation=ATTENTION
    )
    return model.requires_grad_(False)


def train_reward_model(
    base: Description, pairs: Sequence[Pair], held_out: Sequence[Pair], schedule: Schedule, folder: Path
) -> None:
    """Write the adapter, the head, and held_out.json: how well it tells held-out pairs apart."""
    set_seed(schedule.seed)
    backbone = load_backbone(base)
    model = RewardModel(lora(backbone, schedule, "FEATURE_EXTRACTION"), backbone.config.hidden_size)
    trainer = train(RewardTrainer, model, schedule, pairs, folder)
    (folder / HELD_OUT).write_text(json.dumps(trainer.judge(held_out)))
    model.backbone.save_pretrained(str(folder), save_embedding_layers=False)
    save_file(model.head.state_dict(), folder / HEAD)
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)


def load_reward_model(base: Description, folder: Path, dtype: torch.dtype = torch.bfloat16) -> RewardModel:
    """A trained reward model, its adapter merged into the weights."""
    merged = PeftModel.from_pretrained(load_backbone(base, dtype), str(folder)).merge_and_unload()
    model = RewardModel(merged, merged.config.hidden_size)
    model.head.load_state_dict(load_file(folder / HEAD))
    return model.eval().requires_grad_(False)


def scores(model: RewardModel, rows: Sequence[Sequence[int]], batch: int = 64) -> list[float]:
    """Scores of rows of token ids, prompt and response together."""
    found = [0.0] * len(rows)
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    for start in range(0, len(order), batch):
        places = order[start : start + batch]
        longest = max(len(rows[place]) for place in places)
        ids = torch.zeros((len(places), longest), dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, place in enumerate(places):
            ids[row, : len(rows[place])] = torch.tensor(rows[place])
            mask[row, : len(rows[place])] = 1
        with torch.inference_mode():
            for place, score in zip(places, model(ids, mask).tolist(), strict=True):
                found[place] = score
    return found
