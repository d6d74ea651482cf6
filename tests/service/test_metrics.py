"""The endpoint of a worker: its totals are the ledger's, and its health is its own."""

import json
import re
import socket
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import sqlalchemy as sa
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families

import db.jobs
import db.shards
from db.shards import RowOutcome
from tests.service.fake_engine import BREAK, HOLD, REFUSE, completions
from tests.service.test_shards import shard_ids_of
from worker import metrics, tracing
from worker.endpoint import endpoint
from worker.errors import EndpointError, TracingError
from worker.health import Health
from worker.tasks import _new_completion

DASHBOARD = Path("monitoring/grafana-dashboard.json")
ENGINE_METRICS = {
    "genarm_num_requests_running", "genarm_num_requests_waiting", "genarm_batch_occupancy",
    "genarm_kv_cache_usage_perc", "genarm_num_preemptions_total", "genarm_engine_steps_total",
    "genarm_engine_generated_tokens_total", "genarm_model_memory_bytes", "genarm_model_memory_budget_bytes",
    "genarm_model_evictions_total",
    "genarm_time_to_first_token_seconds_count",
    "genarm_inter_token_latency_seconds_count",
}  # fmt: skip
"""Of the real engine; the fake one has no figures."""


def stems(names):
    """Without what Prometheus appends to the name of a histogram."""
    return {re.sub(r"_(bucket|count|sum)$", "", name) for name in names}


@pytest.fixture
def free_port():
    """A port that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def scrape(port, path="/metrics"):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
        return answer.read().decode()


def totals(*ports):
    """The samples of all workers, summed by name and labels."""
    found = {}
    for port in ports:
        for family in text_string_to_metric_families(scrape(port)):
            for sample in family.samples:
                key = (sample.name, *sorted(sample.labels.values()))
                found[key] = found.get(key, 0) + sample.value
    return found


def ledger_totals(ledger, job_id):
    query = """
        SELECT count(DISTINCT CASE WHEN error_code IS NULL THEN request_id END),
               count(DISTINCT CASE WHEN error_code IS NOT NULL THEN request_id END),
               sum(completion_tokens), sum(prompt_tokens), count(completion)
        FROM results WHERE job_id = :job_id"""
    with ledger.connect() as connection:
        return tuple(connection.execute(sa.text(query), {"job_id": job_id}).one())


def metric_totals(*ports):
    found = totals(*ports)
    names = ["genarm_generation_tokens_total", "genarm_prompt_tokens_total"]
    rows = [found.get(("genarm_rows_total", outcome), 0) for outcome in ("completed", "failed")]
    return (*rows, *(found[(name,)] for name in names), found.get(("genarm_request_success_total", "stop"), 0))


def test_while_a_job_runs_the_totals_of_two_workers_are_the_ledgers(
    worker, free_port, settings, ledger, submit, publish, wait_until
):
    ports = (free_port, free_port + 1)
    for port in ports:
        worker(metrics_port=port)
    rows = [f"row {index}" for index in range(60)] + [REFUSE, BREAK, {"nothing": 1}]
    job_id = submit(*rows, HOLD, samples=2, arms=[{"name": "kind", "ref": "x"}])
    publish()
    wait_until(lambda: db.jobs.progress(ledger, job_id).pending_rows == 1)
    assert ledger_totals(ledger, job_id)[:2] == (60, 3)
    wait_until(lambda: metric_totals(*ports) == ledger_totals(ledger, job_id))
    # A shard's last row is in the ledger a moment before the shard is closed.
    wait_until(lambda: totals(*ports)[("genarm_shards_running",)] == 1)
    found = totals(*ports)
    assert found[("genarm_shards_running",)] == 1
    assert found[("genarm_failed_rows_total", "prompt_too_long")] == 1
    assert found[("genarm_arm_tokens_total", "kind")] == found[("genarm_generation_tokens_total",)]
    assert found[("genarm_arm_surprisal_nats_total", "kind")] == found[("genarm_generation_tokens_total",)] / 2
    assert found[("genarm_backend_up", "the database")] == 2
    assert found[("genarm_e2e_request_latency_seconds_count",)] == 60
    assert found[("genarm_commit_seconds_count",)] > 0
    assert all(json.loads(scrape(port, "/health"))["status"] == "ok" for port in ports)


def test_a_row_that_had_its_outcome_is_counted_as_a_duplicate_alone(ledger, submit, service):
    submit("one")
    lease = db.shards.claim(ledger, *shard_ids_of(ledger), "me", 60)
    (row,) = db.shards.pending_rows(ledger, lease)
    row.row["weights"] = {}
    made = completions(None, type("Row", (), {"prompt": "one", "weights": {}}))
    outcome = RowOutcome(lease, row.request_id, [_new_completion(one) for one in made], None)
    before = metrics.GENERATION_TOKENS._value.get(), metrics.DUPLICATES._value.get()
    assert service.writer.put(outcome).result()
    assert service.writer.put(outcome).result()
    assert metrics.GENERATION_TOKENS._value.get() == before[0] + 3
    assert metrics.DUPLICATES._value.get() == before[1] + 1


def test_the_number_of_arms_with_labels_is_bounded(monkeypatch):
    monkeypatch.setattr(metrics, "_arms", set())
    labels = {metrics._arm_label(f"arm {index}") for index in range(1000)}
    assert len(labels) == metrics.MOST_ARMS + 1
    assert metrics._arm_label("arm 0") == "arm 0"


def test_a_port_that_is_taken_is_named_with_the_remedy(service, settings):
    with endpoint(service, settings.model_copy(update={"metrics_port": 0})) as port:
        again = settings.model_copy(update={"metrics_port": port})
        with (
            pytest.raises(EndpointError, match=f"{port} cannot be used.*GENARM_METRICS_PORT"),
            endpoint(service, again),
        ):
            pass
        with pytest.raises(urllib.error.HTTPError, match="404"):
            scrape(port, "/etc/passwd")
        silent = socket.create_connection(("127.0.0.1", port))
        assert "genarm_draining 0.0" in scrape(port)
        silent.close()


def test_health_names_a_dead_thread_and_an_engine_that_hangs(service, wait_until, monkeypatch):
    health = Health(service)
    assert health.problems() == []
    engine = service.engines.engine
    engine.stats = lambda: type("Stats", (), {"steps": 5, "running": 1})
    assert health.problems() == []
    monkeypatch.setattr("worker.health.STALL_SECONDS", -1.0)
    assert health.problems() == ["the engine hangs in a step"]
    del engine.stats
    alive = threading.enumerate
    monkeypatch.setattr(threading, "enumerate", lambda: [t for t in alive() if t.name != "writer"])
    assert health.problems() == ["the thread 'writer' has ended"]
    monkeypatch.undo()
    engine.end()
    wait_until(lambda: health.problems() == ["the thread 'engine' has ended"])
    service.is_draining = True
    assert health.problems() == []


def test_every_metric_of_the_dashboard_exists_and_every_metric_is_documented(
    service, settings, submit, run_shards, ledger
):
    submit("one", REFUSE, arms=[{"name": "kind", "ref": "x"}])
    run_shards(*shard_ids_of(ledger))
    with endpoint(service, settings.model_copy(update={"metrics_port": 0})) as port:
        exposed = {sample.name for f in text_string_to_metric_families(scrape(port)) for sample in f.samples}
    ours = stems(name for name in exposed | ENGINE_METRICS if name.startswith("genarm_"))
    assert stems(re.findall(r"genarm_\w+", DASHBOARD.read_text())) <= ours
    assert ours == set(re.findall(r"`(genarm_\w+)`", Path("docs/metrics.md").read_text()))


def test_a_shard_leaves_a_span_where_tracing_is_on(service, settings, submit, run_shards, ledger, monkeypatch):
    exporter = InMemorySpanExporter()
    monkeypatch.setattr(tracing, "_tracer", None)
    tracing.set_up(settings.model_copy(update={"tracing": True}), exporter)
    job_id = submit("one", "three", REFUSE, shard_rows=8)
    run_shards(*shard_ids_of(ledger))
    tracing._tracer.span_processor.force_flush()
    (span,) = exporter.get_finished_spans()
    assert (span.name, span.attributes["job"]) == ("shard", job_id)
    assert (span.attributes["rows"], span.attributes["tokens"]) == (3, 8)


def test_tracing_without_opentelemetry_names_the_remedy(settings, monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(TracingError, match=r"genarm\[tracing\]"):
        tracing.set_up(settings.model_copy(update={"tracing": True}))
