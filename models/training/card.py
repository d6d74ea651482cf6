"""The model card of an ARM: what it was trained on, how, and how well it does; README.md in its folder."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from models.training.dataset import Data, PairSet
from models.training.settings import TrainingSettings
from models.training.watching import Evaluation

PACKAGES = ("genarm", "torch", "transformers", "peft")


@dataclass(frozen=True)
class Trained:
    """What a run gave."""

    output: Path
    data: Data
    before: Evaluation | None
    """The base itself as a reward model; None without held-out pairs."""
    after: Evaluation | None
    """The weights that were kept."""
    evaluations: Mapping[int, Evaluation]
    """Every look at the held-out pairs, by the steps before it."""
    steps: int
    """Optimiser steps behind the weights that were kept."""
    seconds: float


@dataclass(frozen=True)
class Card:
    """The facts of a model card."""

    name: str
    base: str
    """A hub id, or a path."""
    about: str
    """What the pairs prefer; may be empty."""
    command: str
    """The command that trained it; may be empty."""
    settings: TrainingSettings
    trained: Trained

    def render(self) -> str:
        """The card as Markdown with the hub's YAML header."""
        is_adapter = self.settings.tuning == "lora"
        kind = f"a LoRA adapter of `{self.base}`" if is_adapter else f"`{self.base}`, trained on as a whole,"
        sections = [
            self._header(),
            f"# {self.name}",
            f"An autoregressive reward model (ARM, arXiv 2410.08193): {kind} whose token log-probabilities are "
            "rewards. Added to those of a base model with the same tokenizer, they guide what the base writes.",
            self.about,
            f"    genarm run prompts.jsonl -o out.jsonl --base {self.base} --arm {self.name}=FOLDER 1.0",
            "## Data",
            self._data(),
            "## Training",
            f"    {self.command}" if self.command else "",
            f"{self.trained.steps} optimiser steps in {self.trained.seconds:.0f} s.",
            table({"setting": "value"} | self.settings.model_dump(mode="json")),
            "## Figures",
            self._figures(),
            self._course(),
            "## Versions",
            ", ".join(f"{package} {version(package)}" for package in PACKAGES),
        ]
        return "\n\n".join(section for section in sections if section) + "\n"

    def _header(self) -> str:
        is_adapter = self.settings.tuning == "lora"
        lines = [
            "---",
            f"base_model: {self.base}",
            f"library_name: {'peft' if is_adapter else 'transformers'}",
            "tags:",
        ]
        return "\n".join(
            [*lines, "- autoregressive-reward-model", *(["- lora"] if is_adapter else []), "- genarm", "---"]
        )

    def _data(self) -> str:
        data = self.trained.data
        lines = [f"- {describe_pairs(pairs)}" for pairs in data.sets]
        chosen, rejected = data.mean_tokens
        counts = (
            f"{len(data.train)} pairs for training, {len(data.held_out)} held out. Responses have {chosen:.1f} tokens "
            f"in the mean where they are chosen, {rejected:.1f} where they are rejected."
        )
        if data.held_out_prompts_seen:
            counts += f" The prompts of {data.held_out_prompts_seen} held-out pairs were trained on."
        return "\n".join([*lines, "", counts])

    def _figures(self) -> str:
        before, after = self.trained.before, self.trained.after
        if before is None or after is None:
            return "No pairs were held out."
        rows = {"held-out pairs": "before | after"}
        rows |= {
            name.replace("_", " "): f"{value:.4g} | {asdict(after)[name]:.4g}" for name, value in asdict(before).items()
        }
        compared = "rewards" if self.settings.objective == "paper" else "fused log-probabilities per token"
        note = (
            "Accuracy is the share of held-out pairs whose chosen response is ahead; margin is chosen minus rejected, "
            f"both of {compared}. Rewards are summed log-probabilities in nats. *Before* is the base as a reward model."
        )
        return f"{table(rows)}\n\n{note}"

    def _course(self) -> str:
        """The evaluations on the way, where there were any."""
        if len(self.trained.evaluations) <= 2:
            return ""
        rows = {"step": "loss | accuracy | margin"} | {
            str(step): f"{one.loss:.4g} | {one.accuracy:.4g} | {one.margin:.4g}"
            for step, one in sorted(self.trained.evaluations.items())
        }
        return table(rows)


def describe_pairs(pairs: PairSet) -> str:
    """One line on a source of pairs: name, digest, pairs, and what was left out."""
    return f"{pairs} (sha256 `{pairs.sha256[:16]}…`)"


def table(rows: Mapping[str, object]) -> str:
    """A Markdown table; the first row is its head, and values may hold several cells."""
    lines = [f"| {name} | {', '.join(cell) if isinstance(cell, list) else cell} |" for name, cell in rows.items()]
    columns = lines[0].count("|") - 1
    return "\n".join([lines[0], "|" + " --- |" * columns, *lines[1:]])


def write_card(card: Card, folder: Path) -> None:
    """Write a card as README.md of a folder."""
    (folder / "README.md").write_text(card.render(), encoding="utf-8")
