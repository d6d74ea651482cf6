"""Rows through an engine on tiny models, in float32, step by step in this thread."""

from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from models.completion import Completion
from models.engine import Engine, EngineSettings
from models.guided import GuidedModel
from models.spec import GenerationSpec, PromptRow

SAMPLING: list[dict[str, Any]] = [
    {}, {"top_k": 5}, {"top_p": 0.7, "temperature": 0.8}, {"min_p": 0.1}, {"temperature": 0.0},
]  # fmt: skip


def rows(count: int) -> list[dict[str, Any]]:
    """Rows of all kinds of sampling, one longer than the other."""
    return [
        {"prompt": f"row {'x' * (9 * i)}", "sampling": {"max_new_tokens": 6 + 3 * i, **SAMPLING[i % len(SAMPLING)]}}
        for i in range(count)
    ]


class Started:
    """An engine with the models of one job."""

    def __init__(self, folder: Path, device: str, written: dict[str, Any], **settings: Any) -> None:
        defaults: dict[str, Any] = {"home": folder, "device": device, "dtype": "float32", "use_kernels": False}
        self.engine = Engine(EngineSettings(**{**defaults, "kv_cache_bytes": 2**24, **settings}))
        self.spec = GenerationSpec.parse(written)
        self.guided: GuidedModel = self.engine.load(self.spec)

    def outcomes(
        self, written: Sequence[dict[str, Any]], indexes: Sequence[int] | None = None
    ) -> list[list[Completion] | BaseException]:
        """The completions of each row, or its error; a row is drawn by its index, which is its place if left out."""
        indexes = range(len(written)) if indexes is None else indexes
        futures: list[Future[list[Completion]]] = [
            self.engine.submit(self.guided, PromptRow.parse(row, index, self.spec))
            for index, row in zip(indexes, written, strict=True)
        ]
        while self.engine.step():
            pass
        return [future.exception(timeout=0) or future.result(timeout=0) for future in futures]

    def completions(self, written: Sequence[dict[str, Any]], indexes: Sequence[int] | None = None) -> list[Completion]:
        """All samples of all rows, in order.

        Raises:
            BaseException: the error of the first row that has one.
        """
        found: list[Completion] = []
        for outcome in self.outcomes(written, indexes):
            if isinstance(outcome, BaseException):
                raise outcome
            found += outcome
        return found


def differences(found: Sequence[Completion], expected: Sequence[Completion]) -> tuple[int, int, float]:
    """How many tokens there are, how many differ, and by how much the rewards of equal rows do at most."""
    total = sum(len(one.tokens) for one in expected)
    pairs = list(zip(found, expected, strict=True))
    differing = sum(a != b for one, other in pairs for a, b in zip(one.tokens, other.tokens, strict=True))
    rewards = (
        abs(a - b)
        for one, other in pairs
        if one.tokens == other.tokens
        for name, series in other.token_rewards.items()
        for a, b in zip(one.token_rewards[name], series, strict=True)
    )
    return total, differing, max(rewards, default=0.0)
