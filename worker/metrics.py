"""What a worker counts, for Prometheus: vLLM's names with our prefix where the meaning is the same.

The counters of rows and tokens count what this worker put into the ledger, so that their sums over all workers, living
and dead, are the ledger's own; what is generated twice is in `genarm_engine_generated_tokens_total` alone.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from db.shards import RowOutcome, Written

if TYPE_CHECKING:
    from models.latencies import Buckets
    from worker.service import Service

MOST_ARMS = 100
"""ARMs with labels of their own; jobs choose the names, so that their number must be bounded."""
OTHER_ARMS = "(other)"
REQUEST_SECONDS = (0.3, 0.5, 1, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 3840)
COMMIT_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter, which nobody reads

PROMPT_TOKENS = Counter("genarm_prompt_tokens", "Prompt tokens of the rows that were written, once per sample.")
GENERATION_TOKENS = Counter("genarm_generation_tokens", "Tokens of the completions that were written.")
REQUESTS = Counter("genarm_request_success", "Completions that were written.", ["finished_reason"])
FAILED_ROWS = Counter("genarm_failed_rows", "Rows that were written as failed.", ["code"])
ROWS = Counter("genarm_rows", "Rows of which this worker wrote the outcome.", ["outcome"])
ARM_TOKENS = Counter("genarm_arm_tokens", "Tokens that an ARM gave a reward.", ["arm"])
ARM_NATS = Counter("genarm_arm_surprisal_nats", "Minus the sum of an ARM's token rewards.", ["arm"])
REQUEST_LATENCY = Histogram(
    "genarm_e2e_request_latency_seconds", "From a row's way into the engine to its last token.", buckets=REQUEST_SECONDS
)
SHARDS = Counter("genarm_shards", "Shards that ended in this worker.", ["ending"])
SHARD_SECONDS = Histogram("genarm_shard_seconds", "From a shard's claim to its end.", buckets=REQUEST_SECONDS)
COMMIT_SECONDS = Histogram("genarm_commit_seconds", "A group commit of rows.", buckets=COMMIT_BUCKETS)
DUPLICATES = Counter(
    "genarm_duplicate_completions_dropped", "Rows that had an outcome in the ledger already when they were written."
)
LEASES_LOST = Counter("genarm_lease_lost", "Shards whose lease ran out under this worker.")
RESCUED = Counter("genarm_shards_rescued", "Shards that this worker took back from silent ones.")
PUBLISHED = Counter("genarm_shards_published", "Messages that this worker sent.")
DROPPED_MESSAGES = Counter("genarm_messages_dropped", "Queue entries that were no message of ours.")
OUTBOX_LAG = Gauge(
    "genarm_outbox_lag_seconds", "How long the message has waited that waits longest, or shards for a message."
)
UNSERVED_JOBS = Gauge("genarm_unserved_jobs", "Jobs that wait and whose base no worker serves.")
QUEUE_MESSAGES = Gauge("genarm_queue_messages", "Messages that waited in Redis when this worker looked last.")
BACKEND_UP = Gauge("genarm_backend_up", "1 while the database, or Redis, answers this worker.", ["backend"])


def note_written(outcomes: Sequence[RowOutcome], written: Written) -> None:
    """Count what a group commit put into the ledger."""
    DUPLICATES.inc(written.duplicates)
    for outcome in outcomes:
        if outcome.request_id in written.requests:
            _note_row(outcome)


def _note_row(outcome: RowOutcome) -> None:
    if outcome.error is not None:
        ROWS.labels("failed").inc()
        FAILED_ROWS.labels(outcome.error[0]).inc()
        return
    ROWS.labels("completed").inc()
    for completion in outcome.completions:
        REQUESTS.labels(completion.finish_reason).inc()
        PROMPT_TOKENS.inc(completion.prompt_tokens)
        GENERATION_TOKENS.inc(len(completion.tokens))
        for arm, rewards in completion.token_rewards.items():
            label = _arm_label(arm)
            ARM_TOKENS.labels(label).inc(len(rewards))
            ARM_NATS.labels(label).inc(max(0.0, -sum(rewards)))


_arms: set[str] = set()


def _arm_label(arm: str) -> str:
    if arm not in _arms and len(_arms) >= MOST_ARMS:
        return OTHER_ARMS
    _arms.add(arm)
    return arm


class ServiceCollector(Collector):
    """Gauges of a running service, read when Prometheus asks."""

    def __init__(self, service: "Service") -> None:
        self._service = service

    def describe(self) -> list[Any]:
        """Nothing: before the service has started there is nothing to collect."""
        return []

    def collect(self) -> Iterator[Any]:
        """The engine's figures as of its last step, and the shards in work."""
        service = self._service
        if not service.is_started:
            return
        yield _gauge("genarm_shards_running", "Shards in work.", len(service.heartbeats.running()))
        yield _gauge("genarm_draining", "1 once the worker takes no more shards.", service.is_draining)
        stats = getattr(service.engines.engine, "stats", None)
        if stats is not None:
            yield from _engine_metrics(stats(), service.settings.max_running)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=float(value))


def _engine_metrics(stats: Any, max_running: int) -> Iterable[Any]:
    yield _gauge("genarm_num_requests_running", "Sequences that the engine generates now.", stats.running)
    yield _gauge("genarm_num_requests_waiting", "Sequences that wait for room in the engine.", stats.waiting)
    yield _gauge("genarm_batch_occupancy", "Running sequences over the most that may run.", stats.running / max_running)
    yield _gauge("genarm_kv_cache_usage_perc", "Share of the fullest KV cache in use, 0 to 1.", stats.kv_cache_usage)
    yield _gauge("genarm_model_memory_bytes", "What models and their KV caches take.", stats.model_bytes)
    yield _gauge("genarm_model_memory_budget_bytes", "What they may take.", stats.model_budget_bytes)
    for name, text, value in (
        ("genarm_num_preemptions", "Sequences that lost their KV cache and were computed again.", stats.preemptions),
        ("genarm_engine_steps", "Steps of the engine.", stats.steps),
        ("genarm_model_evictions", "Models and adapters dropped from memory for others.", stats.model_evictions),
        ("genarm_engine_generated_tokens", "Tokens that were drawn, written or not.", stats.generated_tokens),
    ):
        yield CounterMetricFamily(name, text, value=float(value))
    for name, text, buckets in (
        (
            "time_to_first_token",
            "From a sequence's way into the engine to its first token.",
            stats.latencies.first_token,
        ),
        ("inter_token_latency", "From each token of a sequence to its next.", stats.latencies.inter_token),
    ):
        yield _histogram(f"genarm_{name}_seconds", text, buckets)


def _histogram(name: str, text: str, buckets: "Buckets") -> HistogramMetricFamily:
    bounds = [*map(floatToGoString, buckets.bounds), "+Inf"]
    counts = list(zip(bounds, accumulate(buckets.counts), strict=True))
    return HistogramMetricFamily(name, text, buckets=counts, sum_value=buckets.seconds)


def watch(service: "Service") -> Collector:
    """Let Prometheus see a service; `REGISTRY.unregister` ends it."""
    collector = ServiceCollector(service)
    REGISTRY.register(collector)
    return collector
