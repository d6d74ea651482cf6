"""Filters against a naive reference, and draws that depend on nothing but their own row."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from models.sampling import BLOCK, draw, filtered, inverse_cdf, uniform
from models.spec import SamplingParams
from tests.generation.plain import keep

# Scores on a grid give many ties; thresholds off any grid keep them away from sums and ratios of probabilities.
SCORES = st.lists(st.integers(-8, 8).map(lambda step: step / 2), min_size=1, max_size=12)
PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.31, 1.0, 1.7]),
    top_k=st.integers(0, 14),
    top_p=st.sampled_from([1.0, 0.9137, 0.5171, 0.1093, 0.0011]),
    min_p=st.sampled_from([0.0, 0.0213, 0.3571]),
)
GREEDY = st.just(SamplingParams(temperature=0))
NUMBERS = st.floats(0, 1, exclude_max=True)


def probabilities(scores: torch.Tensor, sampling: SamplingParams) -> torch.Tensor:
    weights = filtered(scores[None], [sampling])[0].double()
    return weights / weights.sum()


@settings(deadline=None, derandomize=True, max_examples=500)
@given(SCORES, PARAMS)
def test_filters_equal_the_naive_ones(scores: list[float], sampling: SamplingParams) -> None:
    row = torch.tensor(scores)
    expected = keep((row.double() / sampling.temperature).softmax(0), sampling)
    found = probabilities(row, sampling)
    assert (found > 0).tolist() == (expected > 0).tolist()
    assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-6)


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        ({"top_k": 2}, [0, 1]),
        ({"top_k": 3}, [0, 1, 2]),
        ({"top_k": 9}, [0, 1, 2, 3, 4]),
        ({"top_p": 0.5}, [0]),
        ({"top_p": 0.51}, [0, 1]),
        ({"top_p": 0.75}, [0, 1]),
        ({"top_p": 0.76}, [0, 1, 2]),
        ({"top_p": 1e-9}, [0]),
        ({"min_p": 0.5}, [0, 1]),
        ({"min_p": 0.51}, [0]),
        ({"min_p": 0.25}, [0, 1, 2]),
        ({"top_k": 2, "top_p": 0.6}, [0]),  # of the two that top-k left, the first has 2/3
        ({"temperature": 0.5, "top_p": 0.74}, [0]),  # at temperature 1/2 the first has 64/86, which is 0.744
        ({"temperature": 0.5, "top_p": 0.75}, [0, 1]),
    ],
)
def test_filters_by_hand(sampling: dict[str, Any], kept: list[int]) -> None:
    """Over the probabilities 1/2, 1/4, 1/8, 1/16, 1/16."""
    scores = torch.tensor([0.5, 0.25, 0.125, 0.0625, 0.0625]).log2() * torch.tensor(2.0).log()
    assert probabilities(scores, SamplingParams(**sampling)).nonzero().flatten().tolist() == kept


def test_ties_go_to_the_lowest_ids() -> None:
    scores = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0])
    assert probabilities(scores, SamplingParams(top_k=2)).tolist() == [0, 0.5, 0.5, 0, 0]
    assert probabilities(scores, SamplingParams(top_k=4)).nonzero().flatten().tolist() == [0, 1, 2, 4]
    assert draw(scores[None], [SamplingParams(temperature=0)], [0.9]).item() == 1


def test_impossible_tokens_stay_impossible() -> None:
    scores = torch.tensor([-torch.inf, 0.0, -torch.inf, 1.0])
    for sampling in (SamplingParams(), SamplingParams(top_k=3), SamplingParams(top_p=0.99), SamplingParams(min_p=0.1)):
        assert probabilities(scores, sampling)[[0, 2]].tolist() == [0, 0]
        for number in (0.0, 0.5, 1 - 2**-53):
            assert draw(scores[None], [sampling], [number]).item() in (1, 3)


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-38, 1e-45, 5e-324])
def test_a_vanishing_temperature_is_greedy(temperature: float) -> None:
    scores = torch.tensor([[-30.0, 1.0, 40.0, -torch.inf]])
    assert draw(scores, [SamplingParams(temperature=temperature)], [0.999]).item() == 2


def test_a_high_temperature_flattens() -> None:
    scores = torch.tensor([3.0, 1.0, -2.0, -torch.inf])
    assert probabilities(scores, SamplingParams(temperature=100)).tolist() == pytest.approx([1 / 3] * 3 + [0], abs=0.02)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.lists(st.tuples(PARAMS | GREEDY, NUMBERS), min_size=2, max_size=8), st.integers(0, 999))
def test_a_row_is_drawn_as_if_it_were_alone(rows: list[tuple[SamplingParams, float]], seed: int) -> None:
    scores = torch.randn(len(rows), 700, generator=torch.Generator().manual_seed(seed)) * 4
    before = scores.clone()
    together = draw(scores, [params for params, _ in rows], [number for _, number in rows])
    alone = [draw(scores[i : i + 1], [params], [number]).item() for i, (params, number) in enumerate(rows)]
    assert together.tolist() == alone
    assert torch.equal(scores, before)


def test_greedy_ignores_filters_and_chance() -> None:
    scores = torch.randn(20, 50, generator=torch.Generator().manual_seed(0))
    greedy = [SamplingParams(temperature=0, top_p=0.3, min_p=0.2, top_k=1 + i) for i in range(20)]
    assert draw(scores, greedy, [i / 20 for i in range(20)]).tolist() == scores.argmax(1).tolist()


@settings(deadline=None, derandomize=True, max_examples=200)
@given(
    st.integers(1, 3 * BLOCK + 5).flatmap(
        lambda size: st.lists(st.sampled_from([0.0, 0.0, 0.25, 1.0, 3.0]), min_size=size, max_size=size)
    ),
    NUMBERS,
)
def test_inverse_cdf_inverts_the_cumulative_sum(weights: list[float], number: float) -> None:
    """The weights add up exactly in float64, so that the naive search finds the very same token."""
    weights[len(weights) // 2] = 1.0
    sums = np.cumsum(np.array(weights, dtype=np.float64))
    expected = int(np.searchsorted(sums, number * sums[-1], side="right"))
    found = inverse_cdf(torch.tensor([weights]), torch.tensor([number], dtype=torch.float64)).item()
    assert found == min(expected, int(np.flatnonzero(weights)[-1]))
    assert weights[found] > 0


@pytest.mark.parametrize("number", [0.0, 0.3, 1 - 2**-53])
def test_never_draws_what_has_no_probability(number: float) -> None:
    """Sums that round, and zeros at both ends and at the borders of blocks."""
    weights = torch.rand(64, 4 * BLOCK, generator=torch.Generator().manual_seed(3)) ** 8
    weights[:, :300] = 0
    weights[:, BLOCK * 3 - 7 :] = 0
    drawn = inverse_cdf(weights, torch.full((64,), number, dtype=torch.float64))
    assert (weights.gather(1, drawn[:, None]) > 0).all()


def test_uniforms_are_pinned() -> None:
    """The numbers of a job never change, on any machine or in any version: they make old jobs repeatable."""
    assert uniform(0, 0, 0, 0) == 0.6299085342998937
    assert uniform(2**63 - 1, 10**6, 3, 77) == 0.7229109355544487


def test_each_coordinate_counts() -> None:
    numbers = {uniform(*(int(place == one) for place in range(4))) for one in range(5)}
    assert len(numbers) == 5


@pytest.mark.parametrize("axis", range(4), ids=["seed", "row", "sample", "position"])
def test_uniforms_are_uniform_and_uncorrelated(axis: int) -> None:
    numbers = []
    for step in range(4000):
        place = [5, 5, 5, 5]
        place[axis] = step
        numbers.append(uniform(*place))
    assert 0 <= min(numbers) <= max(numbers) < 1
    assert stats.kstest(numbers, "uniform").pvalue > 0.01
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.05
