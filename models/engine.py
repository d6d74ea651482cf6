"""The engine: one thread that generates for all jobs at once, by continuous batching."""

import logging
import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.completion import Completion
from models.errors import DeviceLostError, RowError, first_line
from models.failures import is_lost, is_out_of_memory
from models.guided import GuidedModel
from models.latencies import Latencies
from models.requests import AnyRequest, EngineRequest, ScoreRequest
from models.scheduler import Plan, Scheduler
from models.scoring import ResponseRow, ScoredResponse, ScoredSequence
from models.shelf import GiveUp
from models.spec import GenerationSpec, PromptRow
from models.step import Drawn, StepLogits, draw_tokens
from models.stopping import StopMatcher
from models.zoo import Zoo

log = logging.getLogger(__name__)

STEPS_TO_GROW = 32
"""After a step that failed, one sequence more runs at once after each so many steps that did not."""
OUT_OF_MEMORY = "the row does not fit into memory, even alone"
NOT_FINITE = (
    "the models give no finite logits (NaN or infinity) for this row; their weights may be broken, or their numbers "
    "too large for float16"
)


@dataclass(frozen=True)
class EngineSettings:
    """Limits and placement of an engine."""

    home: Path
    """Converted models are kept under `home/models`."""
    device: str = "auto"
    dtype: str = "auto"
    """For specs that leave their dtype open."""
    device_map: str | None = None
    """Spreads each model's layers over all GPUs, transformers' way of this name; None: `device` has all of them."""
    max_running: int = 64
    """Sequences that run at once."""
    prefill_tokens: int = 512
    """Prompt tokens that a backbone runs in one step, beside the decodes."""
    kv_cache_bytes: int | None = None
    """KV cache of each backbone; None: a share of what the models leave of the memory for them."""
    model_memory_bytes: int | None = None
    """For models and their KV caches; the least recently used are dropped for others. None: a share of the memory."""
    use_kernels: bool | None = None
    """Run models on the CPU with our own kernels, or with PyTorch's operations; None: with what is faster there."""

    static_decode: bool | None = None
    """Run decodes in static shapes, on CUDA as graphs; None: on CUDA. Not where the kernels run, which need none."""


@dataclass(frozen=True)
class EngineStats:
    """Gauges and counters of an engine."""

    running: int
    waiting: int
    generated_tokens: int
    prompt_tokens: int
    preemptions: int
    steps: int
    kv_cache_usage: float
    """Share of the fullest KV cache that sequences hold, 0 to 1."""
    model_bytes: int
    """What models and their KV caches take of the memory for them."""
    model_budget_bytes: int
    """That memory; 0 before the first model where it is a share of the device's."""
    model_evictions: int
    latencies: Latencies
    """Of all tokens so far; goes on counting."""


class Engine:
    """Generates rows of any number of jobs with base models guided by ARMs, and scores responses.

    `submit` and `score` may be called from any thread. With `start`, a thread runs the steps; without, the caller may
    call `step` itself (tests do).
    """

    def __init__(self, settings: EngineSettings) -> None:
        self._running_lock = threading.RLock()
        self._zoo = Zoo(
            settings.home,
            settings.device,
            settings.dtype,
            settings.kv_cache_bytes,
            settings.use_kernels,
            self._running_lock,
            settings.model_memory_bytes,
            settings.static_decode,
            settings.device_map,
        )
        self._max_running = settings.max_running
        self._good_steps = 0
        """Since the last one that failed."""
        self._scheduler = Scheduler(settings.max_running, settings.prefill_tokens)
        self._arrived: deque[AnyRequest] = deque()
        self._cancelled: deque[Future[Any]] = deque()
        self._requests: dict[Future[Any], AnyRequest] = {}
        self._wakeup = threading.Condition()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._generated_tokens = self._prompt_tokens = self._steps = 0
        self._latencies = Latencies()

    def start(self) -> None:
        """Start the engine's thread."""
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread after the step in flight; futures that are not done are cancelled."""
        with self._wakeup:
            self._stopping = True
            self._wakeup.notify()
        if self._thread is not None:
            self._thread.join()
        self._end()

    def load(self, spec: GenerationSpec, give_up: GiveUp | None = None) -> GuidedModel:
        """The models of a spec, loaded where they are not yet; they stay in memory until `let_go`. Thread-safe.

        Args:
            give_up: asked from time to time while the models in use leave no room; None: no waiting for that.

        Raises:
            ModelsError: a model cannot be found, read or run, or the models do not fit together.
            ModelMemoryError: they do not fit into the memory for models.
            ModelsInUseError: they fit, but not beside the models in use, and the caller gave up.
            DeviceLostError: nothing can be loaded any more.
        """
        return self._zoo.load(spec, give_up)

    def hold(self, guided: GuidedModel) -> bool:
        """Keep models that were loaded before in memory until `let_go`; False: load them again. Thread-safe."""
        return self._zoo.hold(guided)

    def let_go(self, guided: GuidedModel) -> None:
        """Let go of models, once for each `load` and `hold`; rows that are in the engine hold them on their own."""
        self._zoo.let_go(guided)

    def submit(self, guided: GuidedModel, row: PromptRow) -> Future[list[Completion]]:
        """Queue a row; the future gives its `spec.samples` completions, by sample.

        `Future.cancel` drops the row at the next step. A row that cannot be generated sets a RowError on the future.
        """
        future: Future[list[Completion]] = Future()
        request = EngineRequest(guided, future, StopMatcher(row.sampling.stop, guided.base.renderer.text))
        try:
            request.sequences = guided.sequences(row, request)
            self._zoo.hold_again(guided)
        except Exception as error:
            future.set_exception(error)
        else:
            self._enqueue(request)
        return future

    def score(self, guided: GuidedModel, row: ResponseRow) -> Future[ScoredResponse]:
        """Queue a response; the future gives the log-probabilities of its tokens by every model.

        It runs as a prompt does: many tokens in one step. Cancelling and failing are as for `submit`.
        """
        future: Future[ScoredResponse] = Future()
        request = ScoreRequest(guided, future)
        try:
            request.sequences = [guided.scored_sequence(row, request)]
            self._zoo.hold_again(guided)
        except Exception as error:
            future.set_exception(error)
        else:
            self._enqueue(request)
        return future

    def _enqueue(self, request: AnyRequest) -> None:
        request.future.add_done_callback(self._note_cancelled)
        with self._wakeup:
            if not self._stopping:
                self._arrived.append(request)
                self._wakeup.notify()
                return
        request.future.cancel()
        self._zoo.let_go(request.guided)

    def _note_cancelled(self, future: Future[Any]) -> None:
        """The engine looks at those alone: rows may wait by the ten thousand."""
        if future.cancelled():
            self._cancelled.append(future)

    def stats(self) -> EngineStats:
        """The engine's gauges and counters, as of the last step."""
        model_bytes, budget_bytes, evictions = self._zoo.usage
        pools = [backbone.pool for backbone in self._zoo.backbones]
        return EngineStats(
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting) + sum(len(request.sequences) for request in list(self._arrived)),
            generated_tokens=self._generated_tokens,
            prompt_tokens=self._prompt_tokens,
            preemptions=self._scheduler.preemptions,
            steps=self._steps,
            kv_cache_usage=max((1 - pool.free / pool.count for pool in pools), default=0.0),
            model_bytes=model_bytes,
            model_budget_bytes=budget_bytes,
            model_evictions=evictions,
            latencies=self._latencies,
        )

    def _loop(self) -> None:
        try:
            while self._has_work():
                self.step()
        except Exception:
            log.critical("the engine ends, and gives back its rows; only a new process goes on", exc_info=True)
        finally:
            self._end()

    def _has_work(self) -> bool:
        """Wait for work; False once the engine is to stop."""
        with self._wakeup:
            self._wakeup.wait_for(lambda: self._stopping or self._arrived or self._requests)
            return not self._stopping

    def _end(self) -> None:
        """Cancel all that is not done; what comes later is cancelled as it comes."""
        with self._wakeup:
            self._stopping = True
        for request in [*self._requests.values(), *self._arrived]:
            request.future.cancel()
        self._take_arrivals()

    def step(self) -> bool:
        """Schedule, run, sample, collect; False when there was nothing to do.

        Raises:
            DeviceLostError: no step succeeds any more.
        """
        self._take_arrivals()
        plan = self._scheduler.schedule()
        if not plan.chunks:
            self._scheduler.max_running = self._max_running
            return False
        try:
            drawn = self._run(plan)
        except Exception as error:
            self._recover(plan, error)
        else:
            self._collect(drawn)
            self._collect_scored(plan.scored)
            self._grow()
        self._steps += 1
        return True

    def _run(self, plan: Plan) -> list[Drawn]:
        with self._running_lock:
            logits = StepLogits()
            for backbone, chunks in plan.chunks.items():
                logits.run(backbone, chunks)
            return draw_tokens([(s.request.guided, s) for s in plan.ready], logits)

    def _recover(self, plan: Plan, error: Exception) -> None:
        """After a step that failed: run half as many at once, until what cannot run stands alone, and fails alone."""
        if any(is_lost(backbone.device) for backbone in plan.chunks):
            raise DeviceLostError(f"the device fails at everything ({first_line(error)})") from error
        is_short = is_out_of_memory(error)
        running = list(self._scheduler.running)
        self._scheduler.preempt_all()
        self._good_steps = 0
        half = len(running) // 2
        if half:
            self._scheduler.max_running = half
            what = "out of memory" if is_short else "the engine failed in a step"
            trace = None if is_short else error
            log.warning("%s with %d sequences; going on with %d at once", what, len(running), half, exc_info=trace)
            return
        for sequence in running:
            if is_short:
                self._fail(sequence.request, RowError("out_of_memory", f"{OUT_OF_MEMORY} ({first_line(error)})"))
            else:
                self._fail(sequence.request, error)
                self._scheduler.max_running = self._max_running  # those beside it are well

    def _grow(self) -> None:
        """After a step that did not fail."""
        self._good_steps += 1
        if self._scheduler.max_running < self._max_running and self._good_steps % STEPS_TO_GROW == 0:
            self._scheduler.max_running += 1

    def _take_arrivals(self) -> None:
        cancelled = [self._cancelled.popleft() for _ in range(len(self._cancelled))]  # all of them have arrived
        while self._arrived:
            request = self._arrived.popleft()
            self._requests[request.future] = request
            for sequence in request.sequences:
                self._scheduler.add(sequence)
        self._drop([self._requests[future] for future in cancelled if future in self._requests])

    def _drop(self, requests: list[AnyRequest]) -> None:
        self._scheduler.remove(sequence for request in requests for sequence in request.sequences)
        for request in requests:
            self._leave(request)

    def _leave(self, request: AnyRequest) -> None:
        if self._requests.pop(request.future, None):  # a row with several samples may fail once for each
            self._zoo.let_go(request.guided)

    def _collect(self, drawn: list[Drawn]) -> None:
        finished, now = [], time.monotonic()
        for one in drawn:
            sequence = one.sequence
            if one.token < 0:
                self._fail(sequence.request, RowError("not_finite", NOT_FINITE))
                continue
            sequence.append(one.token, one.logprob, one.base_logprob, one.rewards)
            self._latencies.note(sequence, now)
            try:
                completion = sequence.request.completion_if_finished(sequence)
            except Exception as error:  # of a tokenizer, over these tokens
                self._fail(sequence.request, error)
                continue
            if completion:
                finished.append(sequence)
                sequence.request.finished.append(completion)
        self._generated_tokens += len(drawn)
        self._prompt_tokens += sum(s.streams[0].prompt_tokens for s in finished)
        self._scheduler.remove(finished)
        for request in {sequence.request: None for sequence in finished}:
            if len(request.finished) == len(request.sequences):
                self._leave(request)
                request.resolve()

    def _collect_scored(self, scored: list[ScoredSequence]) -> None:
        for sequence in scored:
            request: ScoreRequest = sequence.request
            if not sequence.is_finite:
                self._fail(request, RowError("not_finite", NOT_FINITE))
                continue
            self._drop([request])
            self._prompt_tokens += sequence.streams[0].prompt_tokens
            if request.future.set_running_or_notify_cancel():
                request.future.set_result(sequence.scored([arm.name for arm in request.guided.spec.arms]))

    def _fail(self, request: AnyRequest, error: Exception) -> None:
        self._drop([request])
        if not request.future.done() and request.future.set_running_or_notify_cancel():
            request.future.set_exception(error)
