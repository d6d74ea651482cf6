"""Pairs that a tiny model can learn, and the files and tokenizers around them."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from models.training.preferences import Preference
from tests.tiny_models import make_model


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Write rows (objects, or text as it stands) to a file, one a line."""

    def write(rows: Sequence[Any], name: str = "pairs.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return path

    return write


@pytest.fixture
def preference() -> Callable[..., Preference]:
    def make(prompt: str = "hi", chosen: str = "good", rejected: str = "bad", line: int = 1) -> Preference:
        return Preference(line, prompt, chosen, rejected)

    return make


@pytest.fixture
def learnable_rows() -> Callable[[int], list[dict[str, str]]]:
    """Pairs that prefer one letter over another, in responses of uneven length."""

    def make(count: int) -> list[dict[str, str]]:
        return [
            {"prompt": f"question {n}", "chosen": "yes " * (1 + n % 4), "rejected": "no " * (1 + (n * 7) % 5)}
            for n in range(count)
        ]

    return make


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
