"""How an autoregressive reward model is trained; the defaults are the paper's, except for what fits a small machine."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from models.errors import SpecError
from models.spec import Frozen, explain


class TrainingSettings(Frozen):
    """Objective, optimiser, adapter and limits of one training run."""

    beta: float = Field(0.05, gt=0.0, allow_inf_nan=False)
    """β_r of the objective: the smaller, the further the log-probabilities of chosen and rejected are driven apart."""
    learning_rate: float = Field(5e-4, gt=0.0, allow_inf_nan=False)
    """Peak of a cosine schedule."""
    warmup: float = Field(0.1, ge=0.0, lt=1.0)
    """Share of the steps in which the learning rate rises from zero."""
    weight_decay: float = Field(0.05, ge=0.0, allow_inf_nan=False)
    epochs: int = Field(1, ge=1)
    batch: int = Field(32, ge=1)
    """Pairs per optimiser step."""
    micro_batch: int = Field(8, ge=1)
    """Pairs per forward and backward pass; gradients are accumulated up to `batch`."""
    lora_rank: int = Field(8, ge=1)
    lora_alpha: float = Field(16.0, gt=0.0, allow_inf_nan=False)
    targets: tuple[Annotated[str, Field(min_length=1)], ...] = Field(("q_proj", "k_proj", "v_proj"), min_length=1)
    """Names of the linear layers that are adapted."""
    max_prompt_tokens: int = Field(512, ge=1)
    max_tokens: int = Field(1024, ge=2)
    """Most tokens of a prompt and response together, the closing token included."""
    seed: int = Field(0, ge=0, lt=2**32)
    eval_fraction: float = Field(0.0, ge=0.0, lt=1.0)
    """Share of the pairs that is held out where no file of evaluation pairs is given."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the frozen weights and activations; the adapter's weights are always float32."""

    @model_validator(mode="after")
    def _micro_batches_fill_a_batch(self) -> Self:
        if self.batch % min(self.micro_batch, self.batch):
            raise ValueError(f"a batch of {self.batch} pairs cannot be made of micro-batches of {self.micro_batch}")
        return self

    @property
    def pairs_per_pass(self) -> int:
        """Pairs per forward and backward pass, never more than a batch has."""
        return min(self.micro_batch, self.batch)

    @classmethod
    def parse(cls, fields: Mapping[str, Any]) -> Self:
        """Validate settings.

        Raises:
            SpecError: a setting is unknown, or of the wrong type or range; the message names it.
        """
        try:
            return cls.model_validate(dict(fields))
        except ValidationError as error:
            raise SpecError(explain(error)) from None
