"""The real engine in worker processes: how many there are changes no token."""

import db.jobs
import db.results
from tests.tiny_models import make_adapter, make_model
from worker.embedded import worker_process

DEADLINE_SECONDS = 60


def test_one_worker_and_two_give_the_same_rows(ledger, settings, submit, publish, wait_until, tmp_path):
    settings = settings.model_copy(update={"dtype": "float32", "worker_threads": 2})
    base = make_model(tmp_path / "base", seed=1)
    arm = make_adapter(tmp_path / "arm", base, seed=2)
    spec = {
        "base": str(base),
        "arms": [{"name": "arm", "ref": str(arm), "weight": 0.8}],
        "sampling": {"max_new_tokens": 60, "seed": 4, "ignore_eos": True},
        "samples": 2,
    }
    prompts = [f"prompt {'long ' * (index % 5)}{index}" for index in range(96)]

    def run(most_workers):
        job_id = submit(*prompts, shard_rows=2, **spec)
        publish()
        seen = set()

        def is_done():
            progress = db.jobs.progress(ledger, job_id)
            seen.add(progress.workers)
            return progress.job.status.is_final

        wait_until(is_done, DEADLINE_SECONDS)
        assert max(seen) == most_workers
        return [
            (row["id"], row["sample"], row["tokens"], row["completion"])
            for row in db.results.export_rows(ledger, job_id)
        ]

    with worker_process(settings):
        alone = run(most_workers=1)
        with worker_process(settings):
            together = run(most_workers=2)
    assert len(alone) == 192
    assert together == alone
