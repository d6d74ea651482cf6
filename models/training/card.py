"""The model card of an ARM: what it was trained on, how, and how well it does; README.md beside the adapter."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from models.training.dataset import Data, PairFile
from models.training.settings import TrainingSettings
from models.training.trainer import Evaluation

PACKAGES = ("genarm", "torch", "transformers", "peft")


@dataclass(frozen=True)
class Card:
    """The facts of a model card."""

    name: str
    base: str
    """A hub id, or a path."""
    about: str
    """What the pairs prefer; may be empty."""
    command: str
    """The command that trained the adapter; may be empty."""
    settings: TrainingSettings
    data: Data
    before: Evaluation | None
    """The base itself as a reward model; None without held-out pairs."""
    after: Evaluation | None
    steps: int
    seconds: float

    def render(self) -> str:
        """The card as Markdown with the hub's YAML header."""
        sections = [
            self._header(),
            f"# {self.name}",
            f"An autoregressive reward model (ARM, arXiv 2410.08193): a LoRA adapter of `{self.base}` whose token "
            "log-probabilities are rewards. Added to those of a base model with the same tokenizer, they guide what "
            "the base writes.",
            self.about,
            f"    genarm run prompts.jsonl -o out.jsonl --base {self.base} --arm {self.name}=FOLDER 1.0",
            "## Data",
            self._data(),
            "## Training",
            f"    {self.command}" if self.command else "",
            f"{self.steps} optimiser steps in {self.seconds:.0f} s.",
            table({"setting": "value"} | self.settings.model_dump(mode="json")),
            "## Figures",
            self._figures(),
            "## Versions",
            ", ".join(f"{package} {version(package)}" for package in PACKAGES),
        ]
        return "\n\n".join(section for section in sections if section) + "\n"

    def _header(self) -> str:
        lines = ["---", f"base_model: {self.base}", "library_name: peft", "tags:"]
        return "\n".join([*lines, "- autoregressive-reward-model", "- lora", "- genarm", "---"])

    def _data(self) -> str:
        lines = [f"- {describe_file(file)}" for file in self.data.files]
        counts = f"{len(self.data.train)} pairs for training, {len(self.data.held_out)} held out."
        return "\n".join([*lines, "", counts])

    def _figures(self) -> str:
        if self.before is None or self.after is None:
            return "No pairs were held out."
        rows = {"held-out pairs": "before | after"}
        before, after = asdict(self.before), asdict(self.after)
        rows |= {name.replace("_", " "): f"{before[name]:.4g} | {after[name]:.4g}" for name in before}
        note = (
            "Accuracy is the share of held-out pairs whose chosen response has the higher reward; rewards are summed "
            "log-probabilities in nats; margin is chosen minus rejected. *Before* is the base as a reward model."
        )
        return f"{table(rows)}\n\n{note}"


def describe_file(file: PairFile) -> str:
    """One line on a file of pairs: name, digest, pairs, and what was left out."""
    return f"{file} (sha256 `{file.sha256[:16]}…`)"


def table(rows: Mapping[str, object]) -> str:
    """A Markdown table; the first row is its head, and values may hold several cells."""
    lines = [f"| {name} | {', '.join(cell) if isinstance(cell, list) else cell} |" for name, cell in rows.items()]
    columns = lines[0].count("|") - 1
    return "\n".join([lines[0], "|" + " --- |" * columns, *lines[1:]])


def write_card(card: Card, folder: Path) -> None:
    """Write a card as README.md of a folder."""
    (folder / "README.md").write_text(card.render(), encoding="utf-8")
