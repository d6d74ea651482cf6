"""Best of n: draw n completions of the base, keep the one that the trajectory reward model scores highest."""

import math
from collections.abc import Sequence

from benchmarks.alignment.cache import Row


def kl_of_best(n: int) -> float:
    """The KL from the base that best-of-n spends at most: log n − (n − 1)/n, in nats."""
    return math.log(n) - (n - 1) / n


def best_of(rows: Sequence[Row], scores: Sequence[float], n: int) -> Row:
    """The best of the first n completions of one prompt, with the tokens that all of them cost.

    Drawing reads the prompt once; the reward model reads prompt and response of each. One completion needs no judge.
    """
    best = max(range(n), key=lambda sample: scores[sample])
    prompt = rows[0]["prompt_tokens"]
    drawn = sum(len(row["token_ids"]) for row in rows[:n])
    judged = drawn + n * prompt if n > 1 else 0
    return rows[best] | {"log_ratio": kl_of_best(n), "forward_tokens": prompt + drawn + judged}
