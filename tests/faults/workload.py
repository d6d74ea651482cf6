"""Jobs of tiny random models, and what an undisturbed engine makes of them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import db.jobs
from db import results
from db.jobs import NewJob, NewRow
from db.outcomes import storable
from db.session import Ledger
from models.engine import Engine, EngineSettings
from models.spec import GenerationSpec, PromptRow
from tests.tiny_models import make_adapter, make_model

REWARD_TOLERANCE = 1e-4
SHARD_ROWS = 8


@dataclass
class Workload:
    """Prompts, the spec of their jobs, and what comes out, by (row, sample)."""

    spec: dict[str, Any]
    rows: list[dict[str, Any]]
    expected: dict[tuple[int, int], Any] = field(default_factory=dict)

    @classmethod
    def make(cls, folder: Path, row_count: int) -> "Workload":
        """Make the models in `folder`, and run all rows once with nothing in the way."""
        base = make_model(folder / "base", seed=1)
        arm = make_adapter(folder / "arm", base, seed=2)
        spec = {
            "base": str(base),
            "arms": [{"name": "arm", "ref": str(arm), "weight": 0.8}],
            "dtype": "float32",
            "sampling": {"seed": 7, "max_new_tokens": 12, "ignore_eos": True},
        }
        rows = [
            {"id": index, "prompt": f"{'long ' * (index % 4)}{index}", "sampling": {"max_new_tokens": 4 + index % 9}}
            for index in range(row_count)
        ]
        workload = cls(spec, rows)
        workload.expected = workload._run_undisturbed(folder / "home")
        return workload

    def _run_undisturbed(self, home: Path) -> dict[tuple[int, int], Any]:
        spec = GenerationSpec.parse(self.spec)
        engine = Engine(EngineSettings(home=home, device="cpu", dtype="float32"))
        guided = engine.load(spec)
        futures = [engine.submit(guided, PromptRow.parse(row, index, spec)) for index, row in enumerate(self.rows)]
        while engine.step():
            pass
        return {
            (index, completion.sample): completion
            for index, future in enumerate(futures)
            for completion in future.result(timeout=0)
        }

    def submit(self, ledger: Ledger) -> str:
        """Store a job of all rows, and return its id; nobody announces it."""
        job = NewJob(spec=self.spec, samples=1, shard_rows=SHARD_ROWS)
        return db.jobs.submit(ledger, job, [NewRow(None, row) for row in self.rows]).id

    def check(self, ledger: Ledger, job_id: str) -> None:
        """Every row has exactly its completions, the same as undisturbed, and no shard is open."""
        progress = db.jobs.progress(ledger, job_id)
        assert progress.job.status == "completed", progress
        assert (progress.open_shards, progress.leased_shards, progress.pending_rows) == (0, 0, 0), progress
        rows = list(results.export_rows(ledger, job_id))
        errors = [row["error"] for row in rows if row["error"]]
        assert not errors, errors
        assert [(row["id"], row["sample"]) for row in rows] == sorted(self.expected)
        assert progress.completed_rows == len(self.rows)
        assert progress.generated_tokens == sum(len(completion.tokens) for completion in self.expected.values())
        for row in rows:
            expected = self.expected[row["id"], row["sample"]]
            assert (row["tokens"], row["completion"]) == (expected.tokens, storable(expected.text)), row["id"]
            _compare_rewards(row["token_rewards"], expected.token_rewards)


def _compare_rewards(found: dict[str, list[float]], expected: dict[str, list[float]]) -> None:
    assert found.keys() == expected.keys()
    for arm, values in expected.items():
        assert len(found[arm]) == len(values)
        assert max(abs(a - b) for a, b in zip(found[arm], values, strict=True)) <= REWARD_TOLERANCE
