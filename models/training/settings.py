"""How an autoregressive reward model is trained; the defaults are the paper's, except for what fits a small machine."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from models.errors import SpecError
from models.spec import Frozen, explain

ALL_LINEAR = "all-linear"
"""Stands for every linear layer but the LM head, as in PEFT."""
DEFAULTS_OF: dict[tuple[str, str], dict[str, Any]] = {
    ("objective", "fused"): {"beta": 2.0, "margin": 1.0},
    ("tuning", "full"): {"learning_rate": 5e-7},
}
"""Defaults that go with a choice, in place of the general ones."""


class TrainingSettings(Frozen):
    """Objective, optimiser, adapter and limits of one training run."""

    objective: Literal["paper", "fused"] = "paper"
    """What is compared: `paper`, the summed log-probabilities; `fused`, those of base and ARM together per token."""
    beta: float = Field(0.05, gt=0.0, allow_inf_nan=False)
    """β_r of the objective: the smaller, the further the log-probabilities of chosen and rejected are driven apart."""
    margin: float = Field(0.0, ge=0.0, allow_inf_nan=False)
    """γ of the fused objective: how far, after β_r, the chosen response shall be ahead."""
    fused_weight: float = Field(1.0, gt=0.0, allow_inf_nan=False)
    """w of the fused objective: the weight that the ARM is meant to be used with."""
    tuning: Literal["lora", "full"] = "lora"
    learning_rate: float = Field(5e-4, gt=0.0, allow_inf_nan=False)
    """Peak of a cosine schedule."""
    warmup: float = Field(0.1, ge=0.0, lt=1.0)
    """Share of the steps in which the learning rate rises from zero."""
    weight_decay: float = Field(0.05, ge=0.0, allow_inf_nan=False)
    epochs: int = Field(1, ge=1)
    batch: int = Field(32, ge=1)
    """Pairs per optimiser step, over all processes."""
    micro_batch: int = Field(8, ge=1)
    """Pairs per forward and backward pass of a process; gradients are accumulated up to `batch`."""
    gradient_checkpointing: bool = False
    """Keep fewer activations and compute them again: less memory, about a third more time."""
    lora_rank: int = Field(8, ge=1)
    lora_alpha: float = Field(16.0, gt=0.0, allow_inf_nan=False)
    targets: tuple[Annotated[str, Field(min_length=1)], ...] = Field(("q_proj", "k_proj", "v_proj"), min_length=1)
    """Names of the linear layers that are adapted, or ALL_LINEAR."""
    raw: bool = False
    """Take prompts as they stand, even for models with a chat template."""
    max_prompt_tokens: int = Field(512, ge=1)
    max_tokens: int = Field(1024, ge=2)
    """Most tokens of a prompt and response together, the closing token included."""
    seed: int = Field(0, ge=0, lt=2**32)
    eval_fraction: float = Field(0.0, ge=0.0, lt=1.0)
    """Share of the prompts that is held out where no evaluation pairs are given."""
    eval_every: int = Field(0, ge=0)
    """Steps between two looks at the held-out pairs; 0: only before and after."""
    patience: int = Field(0, ge=0)
    """Evaluations without a lower loss after which training ends with the best weights so far; 0: never."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the frozen weights and activations; weights that are trained are always float32."""

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_choices(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        for (name, choice), defaults in DEFAULTS_OF.items():
            if fields.get(name) == choice:
                fields = defaults | fields
        return fields

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        if self.batch % min(self.micro_batch, self.batch):
            raise ValueError(f"a batch of {self.batch} pairs cannot be made of micro-batches of {self.micro_batch}")
        if self.patience and not self.eval_every:
            raise ValueError("patience counts evaluations; say how often with eval_every (--eval-every)")
        if self.objective == "paper" and self.margin:
            raise ValueError("a margin belongs to the fused objective (--objective fused)")
        return self

    @property
    def pairs_per_pass(self) -> int:
        """Pairs per forward and backward pass, never more than a batch has."""
        return min(self.micro_batch, self.batch)

    def passes_per_step(self, processes: int) -> int:
        """Forward and backward passes of each process per optimiser step.

        Raises:
            SpecError: a batch cannot be shared out evenly.
        """
        if self.batch % (self.pairs_per_pass * processes):
            raise SpecError(
                f"batch: {self.batch} pairs cannot be shared by {processes} processes in micro-batches of "
                f"{self.pairs_per_pass}; make the batch a multiple of {self.pairs_per_pass * processes}, or the "
                "micro-batches smaller"
            )
        return self.batch // (self.pairs_per_pass * processes)

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
