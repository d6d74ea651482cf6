"""The combination of logits is the formula of the paper, term by term."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.guidance import ArmLogits, guided_scores, logprobs_of
from tests.generation.plain import combined_logprobs

SHAPES = st.tuples(st.integers(1, 4), st.integers(3, 9), st.lists(st.integers(3, 9), max_size=3), st.integers(0, 999))


@settings(deadline=None, derandomize=True)
@given(SHAPES)
def test_equals_the_sum_of_log_probabilities(shapes: tuple[int, int, list[int], int]) -> None:
    rows, base_size, arm_sizes, seed = shapes
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(rows, base_size, generator=generator) * 5
    arms = []
    for size in arm_sizes:
        logits = torch.randn(rows, size, generator=generator) * 5 + 100  # a constant that each log-softmax takes away
        arms.append(ArmLogits(torch.arange(rows), logits, torch.randn(rows, generator=generator)))
    size = min([base_size, *arm_sizes])
    before = base.clone()
    scores = guided_scores(base, arms, size, None)
    assert torch.equal(base, before)
    for row in range(rows):
        terms = [(arm.logits[row].log_softmax(0), arm.weights[row].item()) for arm in arms]
        expected = combined_logprobs(base[row].log_softmax(0), terms)
        assert scores[row].log_softmax(0).tolist() == pytest.approx(expected.tolist(), abs=1e-4)


def test_an_arm_guides_its_own_rows_alone() -> None:
    base, logits = torch.zeros(3, 4), torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    scores = guided_scores(base, [ArmLogits(torch.tensor([1]), logits, torch.tensor([2.0]))], 4, None)
    assert scores.tolist() == [[0, 0, 0, 0], [2, 4, 6, 8], [0, 0, 0, 0]]


def test_an_arm_listed_twice_counts_twice() -> None:
    arm = ArmLogits(torch.tensor([0]), torch.tensor([[1.0, 2.0]]), torch.tensor([0.5]))
    assert guided_scores(torch.zeros(1, 2), [arm, arm], 2, None).tolist() == [[1, 2]]


@pytest.mark.parametrize("weight", [-2.0, 0.0, 3.0])
def test_ids_that_a_model_lacks_are_impossible_at_any_weight(weight: float) -> None:
    base = torch.tensor([[0.0, -torch.inf, 1.0, 2.0]])
    logits = torch.tensor([[5.0, 5.0, -torch.inf, 5.0]])
    arm = ArmLogits(torch.tensor([0]), logits, torch.tensor([weight]))
    scores = guided_scores(base, [arm], 4, torch.tensor([1, 2]))
    expected = (torch.tensor([0.0, 2.0]) + 5 * weight).log_softmax(0)
    probabilities = scores.log_softmax(1)[0]
    assert probabilities[[1, 2]].tolist() == [-torch.inf, -torch.inf]
    assert probabilities[[0, 3]].tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def test_logprobs_of_chosen_tokens() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, -torch.inf]])
    expected = [logits[0].log_softmax(0)[2].item(), torch.tensor(0.5).log().item()]
    assert logprobs_of(logits, torch.tensor([2, 1])).tolist() == pytest.approx(expected)
