"""Pairs that a tiny model can learn, and the files and tokenizers around them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from models.training.dataset import PairSource
from models.training.preferences import Preference, parse_preference
from models.training.run import TrainingRun
from models.training.settings import TrainingSettings
from models.training.watching import Evaluation, Listener, Step
from tests.tiny_models import make_model


def source_of(rows: Sequence[dict[str, Any]], name: str = "pairs.jsonl") -> PairSource:
    """Rows as a file of these lines would give them."""
    return PairSource(name, [(f"line {number}", row) for number, row in enumerate(rows, start=1)])


@pytest.fixture
def preference() -> Callable[..., Preference]:
    def make(prompt: Any = "hi", chosen: Any = "good", rejected: Any = "bad", line: int = 1) -> Preference:
        row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        pair = parse_preference(f"line {line}", row)
        assert isinstance(pair, Preference), pair
        return pair

    return make


def learnable(count: int) -> list[dict[str, str]]:
    """Pairs that prefer one word over another, in responses of uneven length."""
    return [
        {"prompt": f"question {n}", "chosen": "yes " * (1 + n % 4), "rejected": "no " * (1 + (n * 7) % 5)}
        for n in range(count)
    ]


class Diary(Listener):
    """Writes down what it hears; asks to stop after `stop_after` steps."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.steps: list[Step] = []
        self.evaluations: list[int] = []
        self.notes: list[str] = []
        self.stop_after = stop_after

    def on_step(self, step: Step) -> None:
        self.steps.append(step)

    def on_evaluation(self, step: int, evaluation: Evaluation) -> None:
        self.evaluations.append(step)

    def on_note(self, text: str) -> None:
        self.notes.append(text)

    def stop_requested(self) -> bool:
        return self.stop_after is not None and len(self.steps) >= self.stop_after


SETTINGS = {"epochs": 3, "batch": 8, "micro_batch": 4, "learning_rate": 1e-2, "dtype": "float32", "seed": 5}


@pytest.fixture
def run(tmp_path: Path, tiny_base: Path) -> TrainingRun:
    """Twelve steps on 29 pairs, and seven held out."""
    return TrainingRun(
        base=str(tiny_base),
        pairs=source_of(learnable(36)),
        output=tmp_path / "arm",
        settings=TrainingSettings.parse(SETTINGS | {"eval_fraction": 0.2}),
        home=tmp_path,
    )


@pytest.fixture
def with_settings(run: TrainingRun) -> Callable[..., TrainingRun]:
    """The same run with other settings."""
    return lambda **settings: replace(run, settings=run.settings.model_copy(update=settings))


def trained_weights(folder: Path) -> dict[str, torch.Tensor]:
    """What a training wrote."""
    name = "adapter_model" if (folder / "adapter_config.json").is_file() else "model"
    return load_file(folder / f"{name}.safetensors")


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Weights are the same, bit for bit."""
    assert one.keys() == other.keys()
    differing = [name for name, weight in one.items() if not torch.equal(weight, other[name])]
    assert not differing


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("tiny") / "base", sharpness=1.0)


@pytest.fixture
def merging_tokenizer() -> Callable[..., Any]:
    """A byte-level tokenizer that merges some pairs of letters, and knows the special tokens <s>, </s> and <end>."""

    def make(*merges: str, template: str | None = None) -> Any:
        tokens = ["<s>", "</s>", "<end>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *merges]
        vocabulary = {token: index for index, token in enumerate(tokens)}
        tokenizer = Tokenizer(models.BPE(vocabulary, [(pair[0], pair[1]) for pair in merges]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            bos_token="<s>",
            eos_token="</s>",
            additional_special_tokens=["<end>"],
            chat_template=template,
        )

    return make
