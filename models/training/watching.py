"""What happens between the steps of a training: reports, evaluations, checkpoints, early stopping, the wish to stop."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import reduce
from transformers import TrainerCallback

from models.errors import ModelsError
from models.training import checkpoint
from models.training.settings import TrainingSettings

if TYPE_CHECKING:
    from models.training.dataset import Data


class NotFiniteError(ModelsError):
    """The loss of a training is no number any more."""


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
    """How well a model tells chosen from rejected.

    Accuracy and margin are of what the objective compares: rewards, or the fused scores.
    """

    pairs: int
    loss: float
    accuracy: float
    """Share of the pairs whose chosen response is ahead."""
    margin: float
    """Mean of chosen − rejected."""
    chosen_reward: float
    """Log-probabilities in nats, summed over a response."""
    rejected_reward: float


class Listener:
    """Hears of a training as it goes; in the main process only. Override what is of interest."""

    def on_data(self, data: "Data") -> None:
        """The pairs have been read and checked."""

    def on_note(self, text: str) -> None:
        """Something that people should know."""

    def on_count(self, what: str, done: int, total: int | None) -> None:
        """How far something that takes a while has come; None: nobody knows how long it is."""

    def on_step(self, step: Step) -> None:
        """An optimiser step was done."""

    def on_evaluation(self, step: int, evaluation: Evaluation) -> None:
        """The held-out pairs were looked at after so many steps."""

    def stop_requested(self) -> bool:
        """Whether the training shall save itself and end; asked often, in every process."""
        return False


@dataclass
class Record:
    """What a run remembers beside weights and optimiser; it is kept in checkpoints."""

    evaluations: dict[int, Evaluation] = field(default_factory=dict)
    """By the number of steps before it; 0 is the base itself."""
    best_step: int = 0
    """Of the evaluation with the lowest loss in training; 0: none yet."""
    misses: int = 0
    """Evaluations since then."""
    seconds: float = 0.0
    """Time spent in runs before this one."""

    def note(self, step: int, evaluation: Evaluation) -> bool:
        """Remember an evaluation in training; True where it is the best so far."""
        best = self.evaluations.get(self.best_step) if self.best_step else None
        self.evaluations[step] = evaluation
        if best is not None and evaluation.loss >= best.loss:
            self.misses += 1
            return False
        self.best_step, self.misses = step, 0
        return True

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        evaluations = {str(step): vars(one) for step, one in self.evaluations.items()}
        return {**vars(self), "evaluations": evaluations}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Record":
        """The record that `as_json` gave."""
        evaluations = {int(step): Evaluation(**one) for step, one in values["evaluations"].items()}
        return cls(**(values | {"evaluations": evaluations}))


class Watch(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Decides after each step what is due, and tells the listener.

    Args:
        settings: how often to evaluate, and when to give up.
        save_every: steps between two checkpoints; 0: none, not even when the run is stopped.
        output: where the best weights are kept.
        listener: told in the main process; asked in every one whether to stop.
        evaluation_of: an Evaluation of transformers' metrics.
    """

    def __init__(
        self,
        settings: TrainingSettings,
        save_every: int,
        output: Path,
        listener: Listener,
        evaluation_of: Callable[[dict[str, float]], Evaluation],
    ) -> None:
        self.settings = settings
        self.save_every = save_every
        self.output = output
        self.listener = listener
        self.evaluation_of = evaluation_of
        self.record = Record()
        self.is_stopped = False
        """Whether the run ended because it was asked to."""
        self._saved_step = -1
        self._evaluated = 0
        self._is_due = False
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Time spent on this training, in this run and those before it."""
        return self.record.seconds + time.monotonic() - self._started

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop between two micro-batches; their gradients are lost, the last step is not."""
        if args.world_size == 1:
            self._stop_if_asked(args, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """See what is due."""
        step, is_last = state.global_step, state.global_step >= state.max_steps
        every = self.settings.eval_every
        self._is_due = every > 0 and (step % every == 0 or (is_last and self.settings.patience > 0))
        control.should_evaluate = self._is_due
        control.should_save = self.save_every > 0 and (step % self.save_every == 0 or is_last)
        if not is_last:
            self._stop_if_asked(args, control)

    def _stop_if_asked(self, args: Any, control: Any) -> None:
        asked = torch.tensor(float(self.listener.stop_requested()), device=args.device)
        if float(reduce(asked, "sum")) > 0:  # of one mind, or the others would wait for this process for ever
            control.should_training_stop = self.is_stopped = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save what a run that was stopped has done."""
        control.should_save = self.is_stopped and self.save_every > 0 and self._saved_step != state.global_step

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Remember that this step is saved."""
        self._saved_step = state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Report a log entry, if it is one of training.

        Raises:
            NotFiniteError: its loss is no number.
        """
        if not logs or "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise NotFiniteError(
                f"the loss of step {state.global_step} is {logs['loss']}, and its weights are spoilt; "
                "try a lower --lr or --dtype float32"
            )
        if state.is_world_process_zero:
            figures = {name: logs[name] for name in ("loss", "accuracy", "margin")}
            self.listener.on_step(Step(state.global_step, state.max_steps, **figures))

    def on_prediction_step(self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **_: Any) -> None:
        """Report how far an evaluation is; one before or after training ends at once where that is wanted."""
        self._evaluated += 1
        if state.is_world_process_zero:
            self.listener.on_count("evaluating", self._evaluated, len(eval_dataloader))
        is_training = 0 < state.global_step < state.max_steps
        if not is_training and args.world_size == 1 and self.listener.stop_requested():
            raise KeyboardInterrupt

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Any = None, model: Any = None, **_: Any
    ) -> None:
        """Keep the best weights, and end where there is nothing to hope for."""
        self._evaluated = 0
        evaluation = self.evaluation_of(metrics)
        if state.is_world_process_zero:
            self.listener.on_evaluation(state.global_step, evaluation)
        is_due, self._is_due = self._is_due, False
        if not self.settings.patience or not is_due:  # not due: before or after the training
            self.record.evaluations[state.global_step] = evaluation
            return
        is_best = self.record.note(state.global_step, evaluation)
        if is_best and state.is_world_process_zero:
            checkpoint.write_best(self.output, state.global_step, checkpoint.trainable(model))
        if self.record.misses >= self.settings.patience:
            control.should_training_stop = True
            control.should_save = self.is_stopped = False  # a run that goes on from before comes to the same end
