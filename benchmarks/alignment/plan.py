"""How strong each method is tried, and how the baselines are trained."""

from dataclasses import dataclass, field

from benchmarks.alignment.pairs import Schedule


@dataclass(frozen=True)
class Plan:
    """Sizes, seeds and strengths of a run."""

    prompts: int = 300
    pairs: int | None = None
    """How many of the pairs the baselines are trained on, and how many of the held-out ones judge them; None: all."""
    new_tokens: int = 64
    seed: int = 1
    genarm: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5)
    """Weights w = 1/β."""
    relative: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3, 0.5, 0.8)
    """Weights of log π_r − log π_base."""
    weak: tuple[float, ...] = (0.1, 0.2, 0.5, 1.0, 1.5)
    """Weights of the small ARM."""
    best_of: tuple[int, ...] = (1, 2, 4, 8, 16)
    args_greedy: tuple[float, ...] = (0.5, 1.5, 4.0)
    args_stochastic: tuple[float, ...] = (0.5, 1.5, 4.0)
    dpo_scales: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    shares: tuple[float, ...] = tuple(eighth / 8 for eighth in range(9))
    """Of `positive` among the two ARMs or adapters."""
    total: float = 1.0
    """What the two ARMs' weights add up to."""
    dpo: Schedule = field(default_factory=lambda: Schedule(beta=0.1, learning_rate=1e-3, epochs=1))
    """Its learning rate is the best of `dpo_rates`."""
    dpo_rates: tuple[float, ...] = (3e-4, 1e-3)
    """Tried on an eighth of the pairs of `positive`, and judged by the loss on held-out pairs."""
    reward_model: Schedule = field(default_factory=lambda: Schedule(beta=1.0, learning_rate=5e-4, epochs=1))
