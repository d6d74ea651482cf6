"""Settings of the service; the only file that reads the environment."""

import hashlib
import os
import tempfile
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from db.errors import DbError
from db.urls import DatabaseUrl, parse_url, sqlite_url
from worker.broker_url import Broker, parse_broker_url, socket_broker

ENV_PREFIX = "GENARM_"
SECRETS_FOLDER = "/run/secrets"
"""A container's secrets: a file genarm_database_url there stands for GENARM_DATABASE_URL, which goes first."""
OF_COMPOSE = frozenset({"VERSION", "REGISTRY", "MODELS"})
"""Variables that compose.yaml reads, and no program."""
LONGEST_SOCKET_PATH = 100
"""Bytes; the kernel allows 107, and redis-server writes a temporary name beside the socket."""


class Settings(BaseSettings):
    """What the environment says (GENARM_HOME, GENARM_DATABASE_URL, …); every field has a default.

    A variable that is empty counts as unset. Without a database and a broker URL the service is *embedded*: SQLite and
    a redis-server of its own under `home`.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        frozen=True,
        extra="ignore",
        hide_input_in_errors=True,
        secrets_dir=SECRETS_FOLDER if Path(SECRETS_FOLDER).is_dir() else None,
    )

    home: Path = Field(
        Path(".genarm"), description="Folder for what genarm keeps: the embedded database, converted models, logs."
    )
    database_url: SecretStr | None = Field(
        None,
        description="sqlite:///PATH or postgresql://USER:PASSWORD@HOST/NAME, with the options of libpq; "
        "unset: SQLite in the home folder.",
    )
    broker_url: SecretStr | None = Field(
        None,
        description="redis://, rediss:// (TLS), unix:// or sentinel:// URL; unset: a redis-server of its own.",
    )
    device: str = Field("auto", description="Where models run: auto (CUDA where present), cpu, cuda or cuda:N.")
    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | None = Field(
        None,
        description="Spread the layers of each model over all GPUs, accelerate's way of this name; unset: one GPU.",
    )
    bases: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Bases whose jobs a worker takes, and no others; separated by commas, unset: all."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Precision for jobs that leave theirs open; auto: bfloat16 where the device supports it, or where "
        "the kernels are clearly faster in it.",
    )
    kernels: Literal["auto", "native", "torch"] = Field(
        "auto",
        description="What runs models on a CPU: native, our kernels; torch, PyTorch's operations; auto: the kernels, "
        "unless PyTorch was clearly faster when both were measured, once for this machine.",
    )
    max_running: int = Field(64, ge=1, description="Sequences that the engine generates at once.")
    prefill_tokens: int = Field(
        512,
        ge=1,
        description="Prompt tokens that a model runs in one step; fewer where many decodes would wait for them.",
    )
    kv_cache_bytes: int | None = Field(
        None, ge=1, description="Memory for each model's KV cache; unset: a share of what the models leave."
    )
    model_memory_bytes: int | None = Field(
        None,
        ge=1,
        description="Memory for models and their KV caches; the least recently used models are dropped for others. "
        "Unset: 90 % of what is free on the GPU, or 80 % of the memory of the machine or container.",
    )
    cuda_graphs: bool = Field(
        True, description="Replay decode steps as CUDA graphs; off where a model is wrong with them."
    )
    worker_threads: int = Field(
        8, ge=1, le=256, description="Shards that one worker holds at once; the engine batches across them."
    )
    shard_rows: int = Field(32, ge=1, le=4096, description="Rows in one shard, the unit that workers claim.")
    window: int = Field(32, ge=1, description="Shards of one job that wait in Redis at once; bounds its memory.")
    lease_seconds: float = Field(
        60.0, gt=0, description="A shard whose worker is silent for so long is given to another worker."
    )
    heartbeat_seconds: float = Field(
        1.0, gt=0, description="Interval of a worker's heartbeat; it extends leases and learns of cancelled jobs."
    )
    rescue_seconds: float = Field(
        2.0, gt=0, description="Interval of a worker's search for expired leases and lost messages."
    )
    grace_seconds: float = Field(
        20.0, ge=0, description="After SIGTERM a worker finishes rows for so long, then hands the rest back."
    )
    allow_any_model: bool = Field(
        False,
        description="Let jobs name any folder or hub id although the database or the queue is shared and the home "
        "folder has no models.toml.",
    )
    max_prompt_bytes: int = Field(2**20, ge=1, description="A row with a longer prompt fails.")
    max_row_bytes: int = Field(2**24, ge=1, description="A dataset with a longer row is refused.")
    max_job_rows: int = Field(100_000_000, ge=1, description="A dataset with more rows is refused.")
    max_samples: int = Field(256, ge=1, le=1024, description="Most completions per row.")
    max_new_tokens: int = Field(32_768, ge=1, description="Longest completion that a job or a row may ask for.")
    metrics_port: int | None = Field(
        None, ge=0, le=65535, description="Port of a worker's /metrics and /health; unset: none; 0: any that is free."
    )
    metrics_host: str = Field("127.0.0.1", description="Address that the port listens on; 0.0.0.0: all.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severity to log.")
    tracing: bool = Field(
        False, description="Send a trace per shard to the collector that OTEL_EXPORTER_OTLP_ENDPOINT names."
    )
    log_format: Literal["console", "json"] = Field("console", description="Lines for people, or JSON objects.")

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, values: Any) -> Any:
        """Compose's ${NAME:-} and .env files leave variables that are there and empty."""
        return {name: value for name, value in values.items() if not (isinstance(value, str) and not value.strip())}

    @field_validator("bases", mode="before")
    @classmethod
    def _listed(cls, bases: Any) -> Any:
        return [base.strip() for base in bases.split(",") if base.strip()] if isinstance(bases, str) else bases

    @field_validator("home")
    @classmethod
    def _absolute(cls, home: Path) -> Path:
        try:
            return home.expanduser().absolute()
        except RuntimeError:
            raise ValueError(f"there is no user {home.parts[0]}") from None
        except OSError:
            raise ValueError("the current folder is gone; name a folder from the root") from None

    @field_validator("database_url")
    @classmethod
    def _usable_database(cls, url: SecretStr | None) -> SecretStr | None:
        try:
            return None if url is None else _checked(url, parse_url)
        except DbError as error:
            raise ValueError(str(error)) from None

    @field_validator("broker_url")
    @classmethod
    def _usable_broker(cls, url: SecretStr | None) -> SecretStr | None:
        return None if url is None else _checked(url, parse_broker_url)

    @property
    def use_kernels(self) -> bool | None:
        """Whether our kernels run models on a CPU; None: where they are not clearly slower."""
        return {"auto": None, "native": True, "torch": False}[self.kernels]

    @property
    def database_is_embedded(self) -> bool:
        """True when no database URL is set."""
        return self.database_url is None

    @property
    def broker_is_embedded(self) -> bool:
        """True when no broker URL is set."""
        return self.broker_url is None

    @property
    def is_embedded(self) -> bool:
        """True when neither is set: all is on this machine, and the user's own."""
        return self.database_is_embedded and self.broker_is_embedded

    @property
    def embedded_database(self) -> Path:
        """The file of the database that is used where no database URL is set."""
        return self.home / "genarm.db"

    @property
    def effective_database_url(self) -> DatabaseUrl:
        """The database to use; may hold a password."""
        if self.database_url is None:
            return sqlite_url(self.embedded_database)
        return parse_url(self.database_url.get_secret_value())

    @property
    def broker(self) -> Broker:
        """The Redis to use; may hold a password."""
        if self.broker_url is None:
            return socket_broker(self.redis_socket)
        return parse_broker_url(self.broker_url.get_secret_value())

    @property
    def redis_socket(self) -> Path:
        """The socket of the embedded redis-server: in `home`, or in a short folder where that path is none for it."""
        socket = self.home / "redis.sock"
        if len(os.fsencode(socket)) <= LONGEST_SOCKET_PATH and str(socket).isprintable():
            return socket
        digest = hashlib.sha256(os.fsencode(self.home)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"genarm-{os.getuid()}-{digest}" / "redis.sock"

    def environment(self) -> dict[str, str]:
        """The environment that gives a child process these same settings, passwords included."""
        variables = {}
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, SecretStr):
                value = value.get_secret_value()
            elif isinstance(value, tuple):
                value = ",".join(value)
            if value is not None:
                variables[variable(name)] = str(value)
        outside = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
        return outside | variables


def _checked(url: SecretStr, parse: Any) -> SecretStr:
    """The URL without spaces around it, once it was taken apart."""
    text = url.get_secret_value().strip()
    parse(text)
    return SecretStr(text)


def faults(error: ValidationError) -> dict[str, str]:
    """What is wrong with the settings, by variable, in a line each; no value is in it, which may be a secret."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    return {variable(str(fault["loc"][0])): fault["msg"].removeprefix("Value error, ") for fault in found}


def variable(name: str) -> str:
    """The environment's name of a setting."""
    return f"{ENV_PREFIX}{name.upper()}"


def unknown_variables(environment: Mapping[str, str]) -> dict[str, str | None]:
    """Variables that begin like settings and are none, each with the setting that is meant, where one is like it."""
    known = {name.upper() for name in Settings.model_fields}
    named = {name.upper().removeprefix(ENV_PREFIX) for name in environment if name.upper().startswith(ENV_PREFIX)}
    unknown = sorted(named - known - OF_COMPOSE)
    return {variable(name): next(map(variable, get_close_matches(name, known, n=1)), None) for name in unknown}
