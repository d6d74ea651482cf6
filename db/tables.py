"""The tables of the ledger; `migrations/` makes them."""

from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import TypeDecorator

from db.clock import UtcTime, now

REAL_DECIMALS = 6
"""Precision of numbers in SQLite's JSON arrays; PostgreSQL's `real[]` keeps float32."""

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
"""SQLite counts up only in a column declared INTEGER."""


class JobStatus(StrEnum):
    """Where a job stands; words of OpenAI's batches."""

    QUEUED = "queued"
    """Stored; no worker has begun."""
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    """Every row has an outcome; some may be failures."""
    FAILED = "failed"
    """The job itself could not run, for example because a model cannot be loaded; see its error."""
    CANCELLING = "cancelling"
    """Workers are letting go of it."""
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """True when nothing more happens by itself."""
        return self in {JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED}


class ShardState(StrEnum):
    """Where a shard stands; `shards.py` has the protocol."""

    OPEN = "open"
    """To do, and nobody was told."""
    PUBLISHED = "published"
    """To do, and its id is in the queue, unless the message got lost."""
    LEASED = "leased"
    """A worker has it until its lease runs out."""
    DONE = "done"
    CANCELLED = "cancelled"


class JsonArray(TypeDecorator[list[Any]]):
    """A list of numbers as a JSON array, which `json_each` takes apart."""

    impl = sa.JSON
    cache_ok = True

    def __init__(self, number: str) -> None:
        """One whose numbers are written in this %-format."""
        super().__init__(none_as_null=True)
        self.number = number

    def bind_processor(self, dialect: sa.Dialect) -> Any:
        """`[1,2]`."""
        return lambda values: None if values is None else f"[{_listed(values, self.number)}]"


class LiteralArray(TypeDecorator[list[Any]]):
    """A list of numbers as PostgreSQL's array, sent as a literal: the driver's own way costs half of a group commit."""

    impl = postgresql.ARRAY
    cache_ok = True

    def __init__(self, item: sa.types.TypeEngine[Any], number: str) -> None:
        """One whose numbers are written in this %-format."""
        super().__init__(item)
        self.number = number

    def bind_processor(self, dialect: sa.Dialect) -> Any:
        """`{1,2}`."""
        return lambda values: None if values is None else f"{{{_listed(values, self.number)}}}"


def _listed(values: list[Any], number: str) -> str:
    """One format for the whole list, since a call for each number would cost a third of a group commit."""
    return (f"{number}," * len(values))[:-1] % tuple(values)


REALS: sa.types.TypeEngine[Any] = LiteralArray(sa.REAL(), "%.9g").with_variant(
    JsonArray(f"%.{REAL_DECIMALS}f"), "sqlite"
)
"""9 digits tell any two float32 apart."""
INTEGERS: sa.types.TypeEngine[Any] = LiteralArray(sa.Integer(), "%d").with_variant(JsonArray("%d"), "sqlite")

metadata = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(referred_table_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    }
)

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("name", sa.Text),
    sa.Column("key", sa.Text),
    sa.Column("fingerprint", sa.Text),
    sa.Column("sweep", sa.JSON(none_as_null=True)),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("spec", sa.JSON, nullable=False),
    sa.Column("samples", sa.Integer, nullable=False),
    sa.Column("total_rows", sa.BigInteger, nullable=False),
    sa.Column("error_code", sa.Text),
    sa.Column("error_message", sa.Text),
    sa.Column("created_at", UtcTime, nullable=False),
    sa.Column("started_at", UtcTime),
    sa.Column("finished_at", UtcTime),
    sa.Column("kept_rows", sa.BigInteger, nullable=False, default=0),
    sa.Column("kept_tokens", sa.BigInteger, nullable=False, default=0),
    sa.Index("ix_jobs_status", "status"),
    sa.Index("uq_jobs_key", "key", unique=True),
)
"""`kept_rows` and `kept_tokens` were done before the latest retry: rates, which count from then, leave them out."""

BASE = jobs.c.spec["base"].as_string()
"""The base of a job's spec."""

requests = sa.Table(
    "requests",
    metadata,
    sa.Column("id", ID, primary_key=True, autoincrement=True),
    sa.Column("job_id", sa.Text, sa.ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    sa.Column("row_index", sa.BigInteger, nullable=False),
    sa.Column("custom_id", sa.Text),
    sa.Column("row", sa.JSON, nullable=False),
    sa.Index("uq_requests_job_id_row_index", "job_id", "row_index", unique=True),
)

shards = sa.Table(
    "shards",
    metadata,
    sa.Column("id", ID, primary_key=True, autoincrement=True),
    sa.Column("job_id", sa.Text, sa.ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    sa.Column("first_row", sa.BigInteger, nullable=False),
    sa.Column("row_count", sa.Integer, nullable=False),
    sa.Column("state", sa.Text, nullable=False, default=ShardState.OPEN),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("lone_attempts", sa.Integer, nullable=False, default=0),
    sa.Column("published_at", UtcTime),
    sa.Column("lease_token", sa.BigInteger, nullable=False, default=0),
    sa.Column("lease_owner", sa.Text),
    sa.Column("lease_expires_at", UtcTime),
    sa.Column("completed_rows", sa.Integer, nullable=False, default=0),
    sa.Column("failed_rows", sa.Integer, nullable=False, default=0),
    sa.Column("generated_tokens", sa.BigInteger, nullable=False, default=0),
    sa.Index("ix_shards_job_id_state_first_row", "job_id", "state", "first_row"),
    sa.Index("ix_shards_state_lease_expires_at", "state", "lease_expires_at"),
)

completions = sa.Table(
    "completions",
    metadata,
    sa.Column("request_id", ID, sa.ForeignKey("requests.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("sample", sa.Integer, primary_key=True),
    sa.Column("completion", sa.Text),
    sa.Column("finish_reason", sa.Text),
    sa.Column("tokens", INTEGERS),
    sa.Column("logprobs", REALS),
    sa.Column("base_logprobs", REALS),
    sa.Column("prompt_tokens", sa.Integer),
    sa.Column("completion_tokens", sa.Integer),
    sa.Column("error_code", sa.Text),
    sa.Column("error_message", sa.Text),
    sa.Column("created_at", UtcTime, nullable=False, default=now()),
)
"""One row per sample; a failed row of the dataset has one, with sample 0, an error and no completion."""

token_rewards = sa.Table(
    "token_rewards",
    metadata,
    sa.Column("request_id", ID, primary_key=True),
    sa.Column("sample", sa.Integer, primary_key=True),
    sa.Column("arm", sa.Text, primary_key=True),
    sa.Column("total", sa.Double, nullable=False),
    sa.Column("token_values", REALS, nullable=False),
    sa.ForeignKeyConstraint(
        ["request_id", "sample"], ["completions.request_id", "completions.sample"], ondelete="CASCADE"
    ),
)
"""The rewards r_t = log π_r(y_t | x, y_<t) of a completion's tokens by one ARM, and their sum."""
