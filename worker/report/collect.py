"""What a report shows, collected from the ledger in the form that the page reads."""

import base64
import gzip
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import groupby, islice
from typing import Any

import numpy as np

import db.jobs
from db.jobs import Job, JobProgress
from db.results import Failure, export_groups, failures
from db.session import Ledger
from db.spans import Span, all_spans
from worker.report.sweep import Front, front_of, label

CHUNK = 200
"""Completions whose tokens are packed together; the page unpacks a chunk when one of them is shown."""
SPAN_ROWS = 50
"""Longest run of neighbouring rows, where not all are shown."""
MILLI = 1000
LOWEST = -32.767
"""Log-probabilities are kept as thousandths in 16 bits; the page says that lower ones are shown as this."""


@dataclass
class Entries:
    """The completions of a report, a list per property."""

    id: list[str] = field(default_factory=list)
    sample: list[int] = field(default_factory=list)
    prompt: list[int] = field(default_factory=list)
    """Position in the report's prompts."""
    text: list[str] = field(default_factory=list)
    finish: list[str] = field(default_factory=list)
    """`stop`, `length` or `failed`."""
    error: list[str | None] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    """How many."""
    kl: list[float | None] = field(default_factory=list)
    weights: list[str] = field(default_factory=list)
    rewards: list[list[float | None]] = field(default_factory=list)
    """By ARM, in the job's order."""


@dataclass
class ReportData:
    """All that a page shows."""

    arms: list[str]
    facts: dict[str, Any] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    """Of the whole job, also of rows that are not shown."""
    front: dict[str, Any] | None = None
    entries: Entries = field(default_factory=Entries)
    prompts: list[str] = field(default_factory=list)
    has_logprobs: bool = False
    """False: the job scores, and nobody drew the tokens."""
    has_base: bool = False
    """False: the job scores without a base."""
    chunks: list[str] = field(default_factory=list)
    """Tokens and their numbers: gzip, base64."""
    token_ids: set[int] = field(default_factory=set)

    def add(self, groups: Iterable[tuple[Any, list[dict[str, Any]]]], limit: int) -> None:
        """Put down the first `limit` output rows of these requests (which have a `row`)."""
        rows = islice(_shown(self, groups), limit)
        for _, chunk in groupby(enumerate(rows), key=lambda pair: pair[0] // CHUNK):
            self.chunks.append(_packed([row for _, row in chunk], self.arms))


def collect(ledger: Ledger, progress: JobProgress, limit: int) -> ReportData:
    """Read a job for its report.

    Args:
        ledger: the database.
        progress: the job.
        limit: most completions to show; of more, runs of rows spread evenly over the job are taken.

    Raises:
        DatabaseUnreachableError: the database does not answer.
    """
    job = progress.job
    front = front_of(ledger, job)
    data = ReportData(
        arms=job.arms,
        failures=failures(ledger, job.id),
        front=None if front is None else _front(front),
    )
    data.add(export_groups(ledger, job.id, spread_spans(ledger, job, limit)), limit)
    data.facts = facts_of(progress, len(data.entries.id))
    return data


def _front(front: Front) -> dict[str, Any]:
    points = [{**asdict(point), "label": label(point.weights)} for point in front.points]
    return {**asdict(front), "points": points}


def spread_spans(ledger: Ledger, job: Job, limit: int) -> Iterator[Span]:
    """All rows, or runs of them spread evenly and none twice, for so many completions."""
    rows = max(limit // job.samples, 1)
    if job.total_rows <= rows:
        yield from all_spans(ledger, job.id)
        return
    runs, left_out = -(-rows // SPAN_ROWS), job.total_rows - rows
    for run in range(runs):
        gaps, begin, end = run * left_out // runs, run * rows // runs, (run + 1) * rows // runs
        yield Span(gaps + begin, gaps + end)


def _shown(data: ReportData, groups: Iterable[tuple[Any, list[dict[str, Any]]]]) -> Iterator[dict[str, Any]]:
    """The rows, each put down in the entries."""
    swept = data.front["arms"] if data.front else []
    for request, rows in groups:
        data.prompts.append(_prompt(request.row))
        weights = request.row.get("weights")
        combination = label({arm: weights[arm] for arm in swept}) if isinstance(weights, dict) else ""
        for row in rows:
            _enter(data, row, combination)
            yield row


def _enter(data: ReportData, row: dict[str, Any], weights: str) -> None:
    entries, error = data.entries, row["error"]
    tokens = row.get("tokens") or []
    data.token_ids.update(tokens)
    entries.id.append(str(row["id"]))
    entries.sample.append(row["sample"])
    entries.prompt.append(len(data.prompts) - 1)
    entries.text.append(row.get("completion") or "" if error is None else "")
    entries.finish.append("failed" if error else row["finish_reason"])
    entries.error.append(f"{error['code']}: {error['message']}" if error else None)
    entries.tokens.append(len(tokens))
    entries.kl.append(_kl(row))
    entries.weights.append(weights)
    entries.rewards.append([_rounded((row.get("rewards") or {}).get(arm)) for arm in data.arms])
    data.has_logprobs |= row.get("logprobs") is not None
    data.has_base |= row.get("base_logprobs") is not None


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(number, 4)


def _kl(row: dict[str, Any]) -> float | None:
    if not row.get("logprobs") or not row.get("base_logprobs"):
        return None
    return _rounded(sum(row["logprobs"]) - sum(row["base_logprobs"]))


def _prompt(row: dict[str, Any]) -> str:
    messages = row.get("messages")
    if isinstance(messages, list):
        return "\n".join(f"[{m.get('role')}] {m.get('content')}" for m in messages if isinstance(m, dict))
    prompt = row.get("prompt")
    return prompt if isinstance(prompt, str) else json.dumps(prompt)


def _packed(rows: list[dict[str, Any]], arms: list[str]) -> str:
    """Of all tokens of the rows: ids as int32, then log π, log π_base and each ARM's rewards as int16 thousandths.

    Zeros where there are none; `has_logprobs` and `has_base` say so.
    """
    with_tokens = [row for row in rows if row.get("tokens")]
    packed = np.array([token for row in with_tokens for token in row["tokens"]], "<i4").tobytes()
    columns = [[row.get(name) for row in with_tokens] for name in ("logprobs", "base_logprobs")]
    columns += [[row["token_rewards"].get(arm) for row in with_tokens] for arm in arms]
    for column in columns:
        filled = [values or [0.0] * len(row["tokens"]) for values, row in zip(column, with_tokens, strict=True)]
        numbers = np.array([number for values in filled for number in values], float)
        packed += np.rint(numbers.clip(LOWEST, -LOWEST) * MILLI).astype("<i2").tobytes()
    return base64.b64encode(gzip.compress(packed, 6, mtime=0)).decode()


def facts_of(progress: JobProgress, shown: int) -> dict[str, Any]:
    """What stands at the top of the page."""
    job, spec = progress.job, progress.job.spec
    arms = ", ".join(f"{arm['name']} × {arm.get('weight', 1):g}" for arm in spec.get("arms", ()))
    sampling = spec.get("sampling") or {}
    speed = f"{progress.tokens_per_second:,.0f}" if progress.tokens_per_second else None
    facts = {
        "job": job.id,
        "name": job.name,
        "status": job.status.value,
        "base": str(spec.get("base", "")).rstrip("/").rpartition("/")[2],
        "ARMs": arms or None,
        "rows": f"{progress.completed_rows:,} of {job.total_rows:,}",
        "failed rows": f"{progress.failed_rows:,}",
        "samples per row": job.samples,
        "tokens": f"{progress.generated_tokens:,}",
        "tokens per second": speed,
        "created": job.created_at.strftime("%Y-%m-%d %H:%M UTC"),
        "completions shown": f"{shown:,}",
        "sampling": ", ".join(f"{name} {value}" for name, value in sampling.items() if value) or None,
    }
    return {name: value for name, value in facts.items() if value is not None}


def read_progress(ledger: Ledger, job_id: str) -> JobProgress:
    """The job of this id, or whose id alone begins like this.

    Raises:
        JobNotFoundError, AmbiguousJobError: as `db.jobs.find`.
    """
    return db.jobs.progress(ledger, db.jobs.find(ledger, job_id).id)
