"""Choosing among the samples of a row by their rewards: preference pairs and best of n."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from db.jobs import Job

Groups = Iterable[tuple[Any, list[dict[str, Any]]]]


@dataclass
class Chooser:
    """Orders completions by a weighted sum of their rewards."""

    job: Job
    by: Mapping[str, float] | None = None
    """Weight by ARM; None: those that the row was generated with."""
    per_token: bool = False
    """Divide by the number of tokens: a sum of log-probabilities favours short completions."""
    skipped: int = field(default=0, init=False)
    """Rows that gave nothing: failed, or with nothing to choose between."""

    def pairs(self, groups: Groups) -> Iterator[dict[str, Any]]:
        """The best and the worst completion of each row: prompt, chosen, rejected, and their rewards.

        All three are text for a prompt, and lists of messages for a chat, as DPO trainers take them.
        """
        for request, rows in groups:
            ranked = self._ranked(request, rows)
            if len(ranked) < 2 or ranked[0][0] == ranked[-1][0] or ranked[0][1] == ranked[-1][1]:
                self.skipped += 1
                continue
            (best, chosen), (worst, rejected) = ranked[0], ranked[-1]
            messages = request.row.get("messages")
            if messages is None:
                pair = {"prompt": request.row.get("prompt"), "chosen": chosen, "rejected": rejected}
            else:
                pair = {"prompt": messages, "chosen": [_reply(chosen)], "rejected": [_reply(rejected)]}
            yield {"id": rows[0]["id"], **pair, "chosen_reward": best, "rejected_reward": worst}

    def best(self, groups: Groups) -> Iterator[dict[str, Any]]:
        """The best completion of each row: prompt and completion, or messages that end with it; and its reward."""
        for request, rows in groups:
            ranked = self._ranked(request, rows)
            if not ranked:
                self.skipped += 1
                continue
            reward, completion = ranked[0]
            messages = request.row.get("messages")
            if messages is None:
                answered = {"prompt": request.row.get("prompt"), "completion": completion}
            else:
                answered = {"messages": [*messages, _reply(completion)]}
            yield {"id": rows[0]["id"], **answered, "reward": reward}

    def _ranked(self, request: Any, rows: list[dict[str, Any]]) -> list[tuple[float, str]]:
        """(reward, completion), the best first; ties in the order of the samples; failed rows left out."""
        weights = self._weights(request.row)
        scored = [(self._reward(row, weights), row["completion"]) for row in rows if row["error"] is None]
        return sorted(scored, key=lambda pair: -pair[0])

    def _weights(self, row: dict[str, Any]) -> dict[str, float]:
        if self.by is not None:
            return dict(self.by)
        weights = {arm["name"]: arm.get("weight", 1.0) for arm in self.job.spec["arms"]}
        return weights | (row.get("weights") or {})

    def _reward(self, row: dict[str, Any], weights: Mapping[str, float]) -> float:
        total = float(sum(weight * row["rewards"].get(arm, 0.0) for arm, weight in weights.items()))
        return total / max(len(row["tokens"] or ()), 1) if self.per_token else total


def _reply(completion: str) -> dict[str, str]:
    return {"role": "assistant", "content": completion}
