"""What TRL's DPOTrainer trains on: its own code over rows as they are, without Arrow, which adds nulls to them."""

import warnings
from types import SimpleNamespace
from typing import Any

from accelerate import PartialState

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from trl import DPOTrainer
    from trl.trainer.dpo_trainer import DataCollatorForPreference


class Rows(list):
    """As much of a dataset as TRL asks for."""

    column_names = None

    def map(self, function: Any, fn_kwargs: dict[str, Any] | None = None, **_: Any) -> "Rows":
        return Rows({**row, **function(dict(row), **(fn_kwargs or {}))} for row in self)

    def filter(self, function: Any, **_: Any) -> "Rows":
        return Rows(row for row in self if function(row))


def tokenised(tokenizer: Any, row: dict[str, Any]) -> dict[str, list[int]]:
    """`prompt_ids`, `chosen_ids` and `rejected_ids` of a row."""
    PartialState()
    arguments = SimpleNamespace(dataset_num_proc=None, max_length=None, truncation_mode="keep_start")
    trainer = SimpleNamespace(_tokenizer=tokenizer)
    (prepared,) = DPOTrainer._prepare_dataset(trainer, Rows([row]), tokenizer, arguments, "train")
    return prepared


def collated(rows: list[dict[str, list[int]]], pad_id: int) -> dict[str, Any]:
    """Rows as a batch: `input_ids`, `attention_mask`, `completion_mask`."""
    return dict(DataCollatorForPreference(pad_token_id=pad_id)(rows))
