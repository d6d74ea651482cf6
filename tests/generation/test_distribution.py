"""Draws from the engine follow π of the method, computed here by hand, by a chi-square test."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from transformers import AutoModelForCausalLM

from models.completion import Completion
from models.spec import GenerationSpec, SamplingParams
from tests.generation.plain import combined_logprobs, keep, next_logprobs
from tests.tiny_models import OTHER_TEMPLATE, make_model, spec_of

WORDS = ["red", "green", "blue", "white", "black", "grey", "pink"]
SIZE = 3 + len(WORDS)
WEIGHTS = {"first": 0.7, "second": -0.4}
ROWS, SAMPLES = 4, 300
PROMPT = "red blue"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A base and two ARMs over ten tokens, one of them with padding rows; flat enough that all tokens occur."""
    folder = tmp_path_factory.mktemp("models")
    return [
        make_model(folder / "base", seed=1, words=WORDS, template=None, sharpness=1.0),
        make_model(folder / "first", "gpt2", seed=2, words=WORDS, template=OTHER_TEMPLATE, sharpness=1.0),
        make_model(folder / "second", "qwen3", seed=3, words=WORDS, template=None, sharpness=1.0, padding_rows=5),
    ]


@pytest.fixture(scope="module")
def kept() -> dict[str, list[Completion]]:
    """Completions by sampling, which several tests look at."""
    return {}


@pytest.fixture
def draws(generate: Any, folders: list[Path], kept: dict[str, list[Completion]]) -> Any:
    """Completions of two tokens for one prompt, many times over."""

    def run(**sampling: Any) -> list[Completion]:
        if (key := repr(sampling)) not in kept:
            kept[key] = complete(**sampling)
        return kept[key]

    def complete(**sampling: Any) -> list[Completion]:
        base, first, second = folders
        arms = ("first", first, WEIGHTS["first"]), ("second", second, WEIGHTS["second"])
        random = {"temperature": 1.0, "max_new_tokens": 2, "ignore_eos": True, **sampling}
        spec = spec_of(base, *arms, samples=SAMPLES, **random)
        rows = generate(spec, [{"prompt": PROMPT}] * ROWS, max_running=ROWS * SAMPLES, prefill_tokens=10**6)
        return [completion for row in rows for completion in row]

    return run


@pytest.fixture
def law(folders: list[Path], make_engine: Any) -> Any:
    """π after the prompt and some response tokens, filtered: float64 [SIZE]."""
    spec = GenerationSpec.parse(spec_of(folders[0], ("first", folders[1], 1.0), ("second", folders[2], 1.0)))
    tokenizers = [model.description.tokenizer for model in make_engine().load(spec).models]
    texts = [PROMPT, f"Q: {PROMPT} A:", PROMPT]
    prompts = [tokenizer(text)["input_ids"] for tokenizer, text in zip(tokenizers, texts, strict=True)]
    networks = [AutoModelForCausalLM.from_pretrained(folder).eval() for folder in folders]

    def compute(response: list[int], weights: dict[str, float] = WEIGHTS, **sampling: Any) -> torch.Tensor:
        base, *arms = (
            next_logprobs(network, prompt + response, SIZE) for network, prompt in zip(networks, prompts, strict=True)
        )
        logprobs = combined_logprobs(base, list(zip(arms, weights.values(), strict=True)))
        params = SamplingParams(**sampling)
        return keep((logprobs.double() / params.temperature).softmax(0), params)

    return compute


def p_value(tokens: list[int], probabilities: torch.Tensor) -> float:
    """Of a chi-square test; tokens that are expected less than five times are taken together."""
    counts = Counter(tokens)
    assert all(probabilities[token] > 0 for token in counts), "a token was drawn that the filters exclude"
    expected = {token: len(tokens) * p for token, p in enumerate(probabilities.tolist()) if p > 0}
    rare = [token for token, number in expected.items() if number < 5]
    cells = [[token] for token in expected if token not in rare] + ([rare] if rare else [])
    found = [sum(counts[token] for token in cell) for cell in cells]
    return float(chisquare(found, [sum(expected[token] for token in cell) for cell in cells]).pvalue)


@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"temperature": 0.6},
        {"temperature": 1.8, "seed": 2},
        {"top_k": 4},
        {"top_p": 0.75},
        {"min_p": 0.3},
        {"temperature": 1.5, "top_k": 7, "top_p": 0.85, "min_p": 0.15},
    ],
    ids=str,
)
def test_first_and_second_tokens_follow_the_law(draws: Any, law: Any, sampling: dict[str, Any]) -> None:
    completions = draws(**sampling)
    firsts = [completion.tokens[0] for completion in completions]
    assert p_value(firsts, law([], **sampling)) > 1e-3
    [(first, count)] = Counter(firsts).most_common(1)
    seconds = [completion.tokens[1] for completion in completions if completion.tokens[0] == first]
    assert count > 120
    assert p_value(seconds, law([first], **sampling)) > 1e-3


@pytest.mark.parametrize(
    "wrong",
    [
        {"weights": {"first": 0.0, "second": 0.0}},
        {"weights": {"first": 1.2, "second": -0.4}},
        {"temperature": 1.0 + sum(WEIGHTS.values())},
    ],
    ids=str,
)
def test_the_test_tells_other_laws_apart(draws: Any, law: Any, wrong: dict[str, Any]) -> None:
    """The base alone, another weight, and the formula divided by 1 + Σw, which some implementations draw from."""
    assert p_value([completion.tokens[0] for completion in draws()], law([], **wrong)) < 1e-3


def test_seeds_and_rows_and_samples_are_independent(draws: Any, law: Any) -> None:
    """The pairs of neighbouring samples' first tokens are distributed as the product."""
    tokens = [completion.tokens[0] for completion in draws()]
    pairs = [SIZE * one + other for one, other in zip(tokens[::2], tokens[1::2], strict=True)]
    single = law([])
    assert p_value(pairs, torch.outer(single, single).flatten()) > 1e-3
