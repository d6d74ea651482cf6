"""What an autoregressive reward model can express (GenARM, arXiv 2410.08193): everything that a trajectory reward can.

Over a tiny vocabulary and horizon all responses are enumerated. For a reward r(y) of whole responses, the optimum of
KL-regularised reinforcement learning is π*(y) ∝ π_base(y) · exp(r(y) / β). The ARM that reaches it is
π_r(y_t | y_<t) ∝ (π*(y_t | y_<t) / π_base(y_t | y_<t))^β: guided decoding with weight 1/β then samples π* itself.
"""

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from models.guidance import ArmLogits, guided_scores

VOCABULARY = 4
HORIZON = 3
RESPONSES = list(product(range(VOCABULARY), repeat=HORIZON))
PREFIXES = [prefix for length in range(HORIZON) for prefix in product(range(VOCABULARY), repeat=length)]


def numbers(generator: torch.Generator, *shape: int) -> Tensor:
    return 2 * torch.randn(*shape, generator=generator, dtype=torch.float64)


def probability(conditionals: dict[tuple[int, ...], Tensor], response: tuple[int, ...]) -> float:
    """Of a whole response, from the log-probabilities of each next token."""
    return float(torch.stack([conditionals[response[:t]][token] for t, token in enumerate(response)]).sum().exp())


def conditionals_of(mass: dict[tuple[int, ...], float]) -> dict[tuple[int, ...], Tensor]:
    """Log-probabilities of the next token after each prefix, for a distribution over whole responses."""
    found = {}
    for prefix in PREFIXES:
        begins = [
            sum(mass[y] for y in RESPONSES if y[: len(prefix) + 1] == (*prefix, token)) for token in range(VOCABULARY)
        ]
        found[prefix] = (torch.tensor(begins, dtype=torch.float64) / sum(begins)).log()
    return found


def guided(base: Tensor, arm: Tensor, weight: float) -> Tensor:
    """The engine's own combination of one step, log π [vocab]."""
    weights = torch.tensor([weight], dtype=torch.float64)
    scores = guided_scores(base[None], [ArmLogits(torch.tensor([0]), arm[None], weights)], VOCABULARY, None)
    return scores[0].log_softmax(0)


@pytest.mark.parametrize("beta", [0.05, 0.5, 1.0, 4.0])
@pytest.mark.parametrize("seed", range(5))
def test_guided_decoding_samples_the_optimum_of_any_trajectory_reward(seed: int, beta: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    base = {prefix: numbers(generator, VOCABULARY).log_softmax(0) for prefix in PREFIXES}
    reward = dict(zip(RESPONSES, numbers(generator, len(RESPONSES)).tolist(), strict=True))
    tilted = {y: probability(base, y) * math.exp(reward[y] / beta) for y in RESPONSES}
    optimum = {y: mass / sum(tilted.values()) for y, mass in tilted.items()}
    optimal = conditionals_of(optimum)

    arm = {prefix: (beta * (optimal[prefix] - base[prefix])).log_softmax(0) for prefix in PREFIXES}
    decoded = {prefix: guided(base[prefix], arm[prefix], 1 / beta) for prefix in PREFIXES}

    for response in RESPONSES:
        assert probability(decoded, response) == pytest.approx(optimum[response], abs=1e-6)


def test_a_sum_of_rewards_that_is_no_arm_of_the_proof_gives_another_distribution() -> None:
    """Tokens that share the trajectory's reward evenly do not reach the optimum: the proof's ARM is not just any."""
    generator = torch.Generator().manual_seed(0)
    base = {prefix: numbers(generator, VOCABULARY).log_softmax(0) for prefix in PREFIXES}
    mass = dict(zip(RESPONSES, numbers(generator, len(RESPONSES)).softmax(0).tolist(), strict=True))
    arm = conditionals_of(mass)  # normalised over whole responses instead of against the base
    tilted = {y: probability(base, y) * mass[y] for y in RESPONSES}
    decoded = {prefix: guided(base[prefix], arm[prefix], 1.0) for prefix in PREFIXES}
    distances = [abs(probability(decoded, y) - tilted[y] / sum(tilted.values())) for y in RESPONSES]
    assert max(distances) > 1e-3
