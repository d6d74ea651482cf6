"""The one engine of this process, and the models that its jobs use."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from celery.utils.log import get_logger

from db.jobs import Job
from models.completion import Completion
from models.errors import SpecError
from models.spec import GenerationSpec, PromptRow
from worker.admission import admit
from worker.errors import BaseNotServedError
from worker.scoring import KIND as SCORE
from worker.scoring import require_scorer
from worker.settings import Settings

if TYPE_CHECKING:
    from models.guided import GuidedModel

log = get_logger(__name__)

JOBS_KEPT = 64


class RowEngine(Protocol):
    """What the service needs of `models.engine.Engine`."""

    def start(self) -> None: ...  # noqa: D102
    def stop(self) -> None: ...  # noqa: D102
    def load(self, spec: GenerationSpec, give_up: Callable[[], bool]) -> "GuidedModel": ...  # noqa: D102
    def hold(self, guided: "GuidedModel") -> bool: ...  # noqa: D102
    def let_go(self, guided: "GuidedModel") -> None: ...  # noqa: D102
    def submit(self, guided: "GuidedModel", row: PromptRow) -> Future[list[Completion]]: ...  # noqa: D102


EngineFactory = Callable[[Settings], RowEngine]


def make_engine(settings: Settings) -> RowEngine:
    """The real engine; imports torch.

    Raises:
        SpecError: there is no such device here, or no kernels where they are demanded; else every job would fail
            because of this worker.
    """
    from models.engine import Engine, EngineSettings
    from models.zoo import prepare

    prepare(settings.device, settings.dtype, settings.use_kernels)
    if settings.device_map is not None and settings.device not in {"auto", "cuda"}:
        raise SpecError(
            f"GENARM_DEVICE_MAP spreads models over all GPUs, and GENARM_DEVICE says {settings.device!r}; leave that, "
            "and let CUDA_VISIBLE_DEVICES say which GPUs there are"
        )
    return Engine(
        EngineSettings(
            home=settings.home,
            device=settings.device,
            dtype=settings.dtype,
            device_map=settings.device_map,
            max_running=settings.max_running,
            prefill_tokens=settings.prefill_tokens,
            kv_cache_bytes=settings.kv_cache_bytes,
            model_memory_bytes=settings.model_memory_bytes,
            use_kernels=settings.use_kernels,
            static_decode=None if settings.cuda_graphs else False,
        )
    )


@dataclass(frozen=True)
class LoadedJob:
    """A job's spec with its models."""

    spec: GenerationSpec
    guided: "GuidedModel"
    kind: str


class Engines:
    """Starts the engine, and remembers the models of the jobs last seen."""

    def __init__(self, factory: EngineFactory, settings: Settings) -> None:
        self._factory = factory
        self._settings = settings
        self._engine: RowEngine | None = None
        self._jobs: OrderedDict[str, LoadedJob] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def engine(self) -> RowEngine:
        """The engine."""
        if self._engine is None:
            raise RuntimeError("the engine is not made")
        return self._engine

    def make(self) -> None:
        """Make the engine, which may import for seconds."""
        self._engine = self._factory(self._settings)

    def start(self) -> None:
        """Start the engine."""
        self.engine.start()

    def stop(self) -> None:
        """Stop the engine; rows in it are cancelled."""
        if self._engine is not None:
            self._engine.stop()

    def job(self, job_id: str, read_job: Callable[[], Job], give_up: Callable[[], bool]) -> LoadedJob:
        """A job's models, loaded where they are not in memory, which they stay in until `let_go`.

        Blocks while they load, and while models in use leave no room for them.

        Args:
            give_up: asked from time to time while there is no room.

        Raises:
            BaseNotServedError: this worker is for jobs of other bases.
            ModelsError: the spec is wrong or not allowed, its models cannot be loaded, or the engine cannot do such a
                job.
            ModelsInUseError: there was no room until `give_up` said so.
        """
        with self._lock:
            known = self._jobs.get(job_id)
            if known is not None:
                self._jobs.move_to_end(job_id)
        if known is not None and self.engine.hold(known.guided):
            return known
        job = read_job()
        spec = GenerationSpec.parse(job.spec)
        if self._settings.bases and spec.base not in self._settings.bases:
            raise BaseNotServedError(f"{job_id} has the base {spec.base!r}, which this worker does not serve")
        admit(spec, self._settings, scores=job.kind == SCORE)
        if job.kind == SCORE:
            require_scorer(self.engine)
        if known is None:
            arms = ", ".join(arm.name for arm in spec.arms) or "none"
            log.info("the first shard of %s: base %s, ARMs %s", job_id, spec.base, arms)
        loaded = LoadedJob(spec, self.engine.load(spec, give_up), job.kind)
        with self._lock:
            self._jobs[job_id] = loaded
            while len(self._jobs) > JOBS_KEPT:
                self._jobs.popitem(last=False)
        return loaded

    def let_go(self, job: LoadedJob) -> None:
        """Let go of a job's models; they stay in memory until others need that."""
        self.engine.let_go(job.guided)
