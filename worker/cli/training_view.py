"""How a training looks on stderr."""

from collections.abc import Callable

from models.training.dataset import Data
from models.training.watching import Evaluation, Listener, Step
from worker.cli import console

BAD_PAIRS_SHOWN = 5
NOTICEABLE_RATIO = 1.2
"""Of mean response lengths, from where on a word about it is due."""


class TrainingView(Listener):
    """Draws bars, and a line for what people may want to scroll back to.

    Args:
        bars: where the bars are.
        asked: whether the training shall stop.
    """

    def __init__(self, bars: console.TrainingBars, asked: Callable[[], bool]) -> None:
        self._bars = bars
        self._asked = asked

    def stop_requested(self) -> bool:  # noqa: D102  # as all below: Listener says it
        return self._asked()

    def on_note(self, text: str) -> None:  # noqa: D102
        console.note(text)

    def on_count(self, what: str, done: int, total: int | None) -> None:  # noqa: D102
        self._bars.show(what, done, total)

    def on_data(self, data: Data) -> None:
        """Say what is trained on, and name the pairs that cannot be used."""
        self._bars.hide("reading pairs")
        for pairs in data.sets:
            for bad in pairs.bad[:BAD_PAIRS_SHOWN]:
                console.note(f"{pairs.name}, {bad}")
            if len(pairs.bad) > BAD_PAIRS_SHOWN:
                console.note(f"{pairs.name}: … and {len(pairs.bad) - BAD_PAIRS_SHOWN} more pairs that cannot be used")
            console.note(str(pairs))
        console.note(f"{len(data.train)} pairs for training, {len(data.held_out)} held out")
        if data.held_out_prompts_seen:
            console.note(f"{data.held_out_prompts_seen} held-out pairs have a prompt that is trained on")
        chosen, rejected = data.mean_tokens
        if max(chosen, rejected) > NOTICEABLE_RATIO * min(chosen, rejected):
            longer, shorter = ("chosen", "rejected") if chosen > rejected else ("rejected", "chosen")
            console.note(
                f"{longer} responses are longer than {shorter} ones ({max(chosen, rejected):.0f} tokens in the mean, "
                f"not {min(chosen, rejected):.0f}), which teaches length too; --objective fused compares per token"
            )

    def on_step(self, step: Step) -> None:  # noqa: D102
        state = f"loss {step.loss:.3f}, accuracy {step.accuracy:.2f}, margin {step.margin:.1f}"
        self._bars.show("training", step.step, step.steps, state, stays=True)
        if console.line_is_due(step.step - 1, step.step, step.steps) and not self._bars.are_seen:
            console.note(f"step {step.step} of {step.steps}: {state}")

    def on_evaluation(self, step: int, evaluation: Evaluation) -> None:  # noqa: D102
        console.note(
            f"step {step}: held-out loss {evaluation.loss:.4f}, accuracy {evaluation.accuracy:.3f}, "
            f"margin {evaluation.margin:.2f}"
        )
