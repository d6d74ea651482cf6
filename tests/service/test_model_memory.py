"""Jobs whose models do not fit into memory together, in real workers: they take turns, and no output changes."""

import threading

import db.jobs
import db.results
import db.shards
from tests.service.fake_engine import HOLD, FakeEngine
from tests.service.test_shards import shard_ids_of
from tests.tiny_models import make_model
from worker.app import make_app
from worker.embedded import worker_process
from worker.engines import make_engine
from worker.tasks import run_shard

CACHE = 2**20
DEADLINE_SECONDS = 60


def test_jobs_take_turns_where_memory_is_for_one_of_them(
    ledger, settings, submit, publish, wait_until, tmp_path, worker_log
):
    bases = [make_model(tmp_path / name, seed=seed) for seed, name in enumerate(("first", "second"))]
    settings = settings.model_copy(update={"dtype": "float32", "kv_cache_bytes": CACHE, "log_level": "info"})

    def run(**changes):
        jobs = [
            submit(*[f"row {index}" for index in range(24)], base=str(base), sampling={"max_new_tokens": 8, "seed": 1})
            for base in bases
        ]
        publish()
        with worker_process(settings.model_copy(update=changes)):
            wait_until(lambda: all(db.jobs.find(ledger, job).status.is_final for job in jobs), DEADLINE_SECONDS)
        return [[row["tokens"] for row in db.results.export_rows(ledger, job)] for job in jobs]

    expected = run()
    assert "from memory" not in worker_log()
    assert run(model_memory_bytes=CACHE + CACHE // 2) == expected
    assert worker_log().count("from memory for other models") >= 1
    assert all(all(rows) for rows in expected)


def test_models_that_never_fit_fail_the_job_in_words(ledger, settings, submit, tmp_path, job, results):
    job_id = submit("one", base=str(make_model(tmp_path / "base")))
    tight = settings.model_copy(update={"dtype": "float32", "kv_cache_bytes": CACHE, "model_memory_bytes": CACHE})
    app = make_app(tight, make_engine)
    app.service.prepare()
    app.service.start()
    try:
        run_shard(app.service, *shard_ids_of(ledger))
    finally:
        app.service.drain(0)
        app.service.stop()
    assert job(job_id).error_code == "models_too_large"
    assert "GENARM_MODEL_MEMORY_BYTES" in results(job_id)[0]["error"]["message"]


class FullEngine(FakeEngine):
    """Has no room for the models of any job; `asked` is set once one waits for it."""

    asked = threading.Event()

    def load(self, spec, give_up):
        from models.errors import ModelsInUseError

        self.asked.set()
        while not give_up():
            pass
        raise ModelsInUseError("no room")


def test_a_shard_that_waits_for_memory_is_handed_back_when_the_worker_stops(ledger, settings, submit):
    submit(HOLD)
    (shard_id,) = shard_ids_of(ledger)
    app = make_app(settings, FullEngine)
    app.service.prepare()
    app.service.start()
    thread = threading.Thread(target=run_shard, args=(app.service, shard_id), daemon=True)
    thread.start()
    assert FullEngine.asked.wait(10)
    app.service.drain(0)
    thread.join(10)
    app.service.stop()
    lease = db.shards.claim(ledger, shard_id, "another", 60)
    assert (lease.attempt, lease.token) == (0, 2)
