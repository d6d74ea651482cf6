"""Equations that hold for the method whatever the models are."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.tiny_models import FAMILIES, OTHER_TEMPLATE, make_adapter, make_model, pad_head, spec_of

ROWS = [
    {"prompt": "Hi"},
    {"prompt": "a longer prompt, with naïve 漢字"},
    {"prompt": "x", "sampling": {"temperature": 0}},
]
RANDOM = {"temperature": 1.0, "seed": 4, "samples": 2}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "base", seed=1)


@pytest.fixture(scope="module")
def arm(base: Path) -> Path:
    return make_model(base.parent / "arm", "qwen3", seed=2, template=OTHER_TEMPLATE)


@pytest.fixture(scope="module")
def adapter(base: Path) -> Path:
    return make_adapter(base.parent / "adapter", base, seed=3)


@pytest.fixture
def assert_same_tokens(generate: Any) -> Any:
    """Two jobs generate the same tokens, with the same log π; gives the completions of both, in pairs."""

    def compare(one: dict[str, Any], other: dict[str, Any], rows: Any = ROWS) -> list[tuple[Any, Any]]:
        pairs = []
        for first, second in zip(generate(one, rows), generate(other, rows), strict=True):
            pairs += zip(first, second, strict=True)
        for a, b in pairs:
            assert a.tokens == b.tokens
            assert a.base_logprobs == pytest.approx(b.base_logprobs, abs=1e-4)
        return pairs

    return compare


def test_weight_zero_is_the_base_alone(assert_same_tokens: Any, base: Path, arm: Path, adapter: Path) -> None:
    guided = spec_of(base, ("first", arm, 0.0), ("second", adapter, 0.0), **RANDOM)
    for one, alone in assert_same_tokens(guided, spec_of(base, **RANDOM)):
        assert one.logprobs == pytest.approx(one.base_logprobs, abs=1e-5)
        assert alone.logprobs == alone.base_logprobs
        assert len(one.token_rewards["first"]) == len(one.tokens)  # rewards are reported all the same


def test_weight_zero_in_a_row_is_the_base_alone(generate: Any, base: Path, arm: Path) -> None:
    rows = [{**row, "weights": {"first": 0}} for row in ROWS]
    guided, alone = (
        generate(spec_of(base, ("first", arm, 3.0), **RANDOM), rows),
        generate(spec_of(base, **RANDOM), ROWS),
    )
    assert [[c.tokens for c in row] for row in guided] == [[c.tokens for c in row] for row in alone]


@pytest.mark.parametrize("kind", ["arm", "adapter"])
@pytest.mark.parametrize("weights", [(0.4, 0.4), (1.0, -0.2), (0.8, 0.0)])
def test_an_arm_listed_twice_weighs_the_sum(
    assert_same_tokens: Any, request: pytest.FixtureRequest, base: Path, kind: str, weights: tuple[float, float]
) -> None:
    arm = request.getfixturevalue(kind)
    once = spec_of(base, ("arm", arm, 0.8), **RANDOM)
    twice = spec_of(base, ("arm", arm, weights[0]), ("again", arm, weights[1]), **RANDOM)
    for one, other in assert_same_tokens(once, twice):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
        assert one.token_rewards["arm"] == pytest.approx(other.token_rewards["arm"], abs=1e-4)
        assert other.token_rewards["again"] == pytest.approx(other.token_rewards["arm"], abs=1e-4)


def test_opposite_weights_cancel(assert_same_tokens: Any, base: Path, arm: Path) -> None:
    cancelled = spec_of(base, ("plus", arm, 2.0), ("minus", arm, -2.0), **RANDOM)
    assert_same_tokens(cancelled, spec_of(base, **RANDOM))


def test_the_order_of_arms_is_indifferent(assert_same_tokens: Any, base: Path, arm: Path, adapter: Path) -> None:
    arms = ("first", arm, 0.5), ("second", adapter, -0.7)
    for one, other in assert_same_tokens(spec_of(base, *arms, **RANDOM), spec_of(base, *arms[::-1], **RANDOM)):
        for name in ("first", "second"):
            assert one.token_rewards[name] == pytest.approx(other.token_rewards[name], abs=1e-4)


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_a_base_that_is_its_own_arm_is_the_base_at_a_lower_temperature(
    assert_same_tokens: Any, base: Path, weight: float
) -> None:
    """π_base · π_base^w = π_base^(1 + w), and temperature 1 + w undoes it."""
    sharpened = spec_of(base, ("own", base, weight), **RANDOM)
    for one, _ in assert_same_tokens(sharpened, spec_of(base, **{**RANDOM, "temperature": 1 / (1 + weight)})):
        assert one.token_rewards["own"] == pytest.approx(one.base_logprobs, abs=1e-5)
    undone = spec_of(base, ("own", base, weight), **{**RANDOM, "temperature": 1 + weight})
    assert_same_tokens(undone, spec_of(base, **RANDOM), ROWS[:2])


def test_what_is_reported_does_not_depend_on_temperature_or_filters(generate: Any, base: Path, arm: Path) -> None:
    """All these draw the most probable token, and report of it what the models say."""
    greedy = [{"temperature": 0}, {"temperature": 1e-4}, {"top_k": 1}, {"top_p": 1e-6}, {"min_p": 0.999999}]
    rows = [{"prompt": "the same", "sampling": {"temperature": 1.0, **sampling}} for sampling in greedy]
    first, *others = (row[0] for row in generate(spec_of(base, ("arm", arm, 1.0)), rows))
    for other in others:
        assert other.tokens == first.tokens
        assert other.logprobs == pytest.approx(first.logprobs, abs=1e-4)
        assert other.token_rewards["arm"] == pytest.approx(first.token_rewards["arm"], abs=1e-4)


def test_an_arm_without_opinions_changes_nothing(assert_same_tokens: Any, base: Path, tmp_path: Path) -> None:
    """Its log-probability is −log V for every token."""
    model = AutoModelForCausalLM.from_pretrained(make_model(tmp_path / "arm"))
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    model.save_pretrained(tmp_path / "arm")
    guided = spec_of(base, ("arm", tmp_path / "arm", 5.0), **RANDOM)
    for one, _ in assert_same_tokens(guided, spec_of(base, **RANDOM)):
        assert one.logprobs == pytest.approx(one.base_logprobs, abs=1e-4)
        assert one.token_rewards["arm"] == pytest.approx(
            [-torch.tensor(259.0).log().item()] * len(one.tokens), abs=1e-5
        )


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_padding_rows_of_the_head_do_not_exist(assert_same_tokens: Any, tmp_path: Path, arm: Path, family: str) -> None:
    """They would win every draw, and take their share of every softmax."""
    plain = make_model(tmp_path / "plain", family, seed=5)
    padded = pad_head(tmp_path / "padded", plain, rows=61)
    jobs = spec_of(plain, ("arm", arm, 0.5), **RANDOM), spec_of(padded, ("arm", arm, 0.5), **RANDOM)
    for one, other in assert_same_tokens(*jobs):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
    jobs = spec_of(arm, ("arm", plain, 0.5), **RANDOM), spec_of(arm, ("arm", padded, 0.5), **RANDOM)
    for one, other in assert_same_tokens(*jobs):
        assert one.token_rewards["arm"] == pytest.approx(other.token_rewards["arm"], abs=1e-4)


def favour(folder: Path, token: int) -> Path:
    """Let a model want one token very much, or very little, wherever it is."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.get_output_embeddings().weight[token] *= 6
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("side", ["base", "arm", "both"])
def test_an_added_token_is_drawn_only_where_all_have_it(
    tmp_path: Path, assert_equals_plain: Any, generate: Any, side: str
) -> None:
    added = 259
    folders = {}
    for index, name in enumerate(["base", "arm"]):
        has_it = side in (name, "both")
        folders[name] = make_model(tmp_path / name, seed=index, extra=["<new>"] if has_it else None)
        if has_it:
            favour(folders[name], added)
    spec = spec_of(folders["base"], ("arm", folders["arm"], 1.0), temperature=1.0, samples=4, ignore_eos=True)
    assert_equals_plain(spec, ROWS[:2])
    drawn = {token for row in generate(spec, ROWS[:2]) for completion in row for token in completion.tokens}
    assert (added in drawn) is (side == "both")


@pytest.mark.parametrize("weight", [1.0, -1.0, 0.0])
def test_an_id_that_a_tokenizer_leaves_out_is_never_drawn(
    tmp_path: Path, generate: Any, base: Path, weight: float
) -> None:
    """A hole in the middle of the vocabulary, on an id that both models would like best."""
    hole = 200
    arm = favour(make_model(tmp_path / "arm", seed=6), hole)
    own = favour(make_model(tmp_path / "own", seed=7), hole)
    tokenizer = json.loads((arm / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] = {token: i for token, i in tokenizer["model"]["vocab"].items() if i != hole}
    (arm / "tokenizer.json").write_text(json.dumps(tokenizer))
    random = {"temperature": 1.0, "samples": 4, "ignore_eos": True}
    assert hole in {token for row in generate(spec_of(own, **random), ROWS) for c in row for token in c.tokens}
    for row in generate(spec_of(own, ("arm", arm, weight), **random), ROWS):
        for completion in row:
            assert hole not in completion.tokens
            assert all(torch.tensor([completion.logprobs, completion.token_rewards["arm"]]).isfinite().flatten())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_ragged_prompts_is_each_prompt_alone(tmp_path: Path, generate: Any, family: str) -> None:
    """Learned positions and sliding windows among them."""
    spec = spec_of(make_model(tmp_path / "base", family, seed=8), **RANDOM)
    rows = [{"prompt": "p" * length} for length in (1, 40, 7, 16, 2)]
    for index, together in enumerate(generate(spec, rows)):
        alone = generate(spec, rows, only=[index])[0]
        assert [completion.tokens for completion in together] == [completion.tokens for completion in alone]
