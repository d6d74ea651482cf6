"""The Celery app, and a worker that runs it."""

import logging
import os
import signal
import threading
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from celery import Celery, signals
from celery.exceptions import CPendingDeprecationWarning
from kombu import Queue

from worker import logs, quiet, serving, tasks, tracing, transport
from worker.announcing import telling
from worker.broker import TRANSPORT_OPTIONS
from worker.embedded import READY, redis_server
from worker.endpoint import endpoint
from worker.engines import EngineFactory, make_engine
from worker.service import Service
from worker.settings import Settings


class App(Celery):  # type: ignore[misc]
    """A Celery app whose broker is the one of its settings, whatever CELERY_BROKER_URL says."""

    def __init__(self, settings: Settings) -> None:
        self._broker_url = settings.broker.url
        super().__init__("genarm", broker=self._broker_url, set_as_current=False)

    def connection_for_read(self, url: str | None = None, **options: Any) -> Any:
        """A connection for what takes messages."""
        return super().connection_for_read(url or self._broker_url, **options)

    def connection_for_write(self, url: str | None = None, **options: Any) -> Any:
        """A connection for what sends messages."""
        return super().connection_for_write(url or self._broker_url, **options)


def make_app(settings: Settings, engine_factory: EngineFactory = make_engine) -> Celery:
    """The Celery app: publishes, and in a worker runs shards. `app.service` holds the worker's parts."""
    transport.install()
    app = App(settings)
    app.conf.update(
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options=TRANSPORT_OPTIONS | settings.broker.options,
        # Those of its bases, or the common one; only JSON; no results: the ledger has them.
        task_default_queue=transport.QUEUE,
        task_queues=[Queue(transport.queue_of_base(base)) for base in settings.bases] or [Queue(transport.QUEUE)],
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        # A message is acknowledged after its shard is in the ledger; the ledger drops duplicates.
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_pool="worker.pool:EnginePool",
        worker_consumer="worker.consumer:Consumer",
        worker_concurrency=settings.worker_threads,
        worker_prefetch_multiplier=1,
        # Threads go on while Redis is away, and messages that come twice end quickly.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_enable_prefetch_count_reduction=False,
        # The pool itself waits for the grace period.
        worker_soft_shutdown_timeout=0,
        worker_redirect_stdouts=False,
    )
    app.service = Service(app, settings, engine_factory)
    tasks.register(app, app.service)
    return app


def worker_argv(settings: Settings, options: Sequence[str] = ()) -> list[str]:
    """Arguments for Celery's worker command; `options` are Celery's own and go last, so that they win.

    A log of JSON has no banner at its head, which is no JSON.
    """
    return [
        *(["--quiet"] if settings.log_format == "json" else []),
        "worker",
        f"--loglevel={settings.log_level}",
        f"--hostname=genarm-{os.getpid()}@%h",
        "--without-gossip",
        "--without-mingle",
        *options,
    ]


def run_worker(
    settings: Settings,
    options: Sequence[str] = (),
    engine_factory: EngineFactory = make_engine,
    ready_fd: int | None = None,
    lifeline_fd: int | None = None,
) -> int:
    """Run a Celery worker in this process until it is stopped, and return its exit status.

    It stops by itself, with status 1, when its engine has ended.

    Args:
        options: Celery's own worker options.
        ready_fd: gets a line when the worker consumes messages, and others before, where that takes a while.
        lifeline_fd: the worker stops when the other end of this pipe is closed.

    Raises:
        RedisStartError: the embedded redis-server does not start.
        SchemaOutdatedError: the database's schema is of another version. While it does not answer, the worker waits.
        ModelNotAllowedError: a base that it is to serve is not in the registry.
        EndpointError: the metrics port is taken.
        TracingError: traces are wanted, and OpenTelemetry is not installed.
        click.UsageError: an option that Celery does not know.
    """

    def tell(line: bytes) -> None:
        if ready_fd is not None:
            with suppress(BrokenPipeError):  # whoever started this worker has ended, and soon ends it
                os.write(ready_fd, line + b"\n")

    quiet.hush()
    quiet.hush_bars()
    logs.set_up(settings.log_format, getattr(logging, settings.log_level.upper()))  # until Celery has its own options
    with redis_server(settings):
        tracing.set_up(settings)
        app = make_app(serving.with_all_names(settings), engine_factory)
        with telling(lambda text: tell(text.encode())):
            app.service.prepare()
        workers: list[Any] = []
        signals_seen: list[str] = []

        def on_init(sender: Any, **_: Any) -> None:
            workers.append(sender)

        def on_logging(loglevel: int, logfile: str | None, **_: Any) -> None:
            logs.set_up(settings.log_format, loglevel, logfile)
            # Celery says with each lost connection what a later version will do; our settings say what this one does.
            warnings.simplefilter("ignore", CPendingDeprecationWarning)

        def on_ready(**_: Any) -> None:
            tell(READY)

        def on_signal(sig: str, **_: Any) -> None:
            signals_seen.append(sig)
            if len(signals_seen) > 1:
                app.service.hand_back_soon()

        signals.setup_logging.connect(on_logging)
        signals.worker_init.connect(on_init)
        signals.worker_ready.connect(on_ready)
        signals.worker_shutting_down.connect(on_signal)
        if lifeline_fd is not None:
            threading.Thread(target=_stop_at_end_of, args=(lifeline_fd,), name="lifeline", daemon=True).start()
        with endpoint(app.service, settings):
            app.worker_main(worker_argv(settings, options))
    (worker,) = workers
    status = int(worker.exitcode or app.service.has_lost_engine)
    if worker.pool is not None and worker.pool.has_stuck_threads():
        logging.shutdown()
        os._exit(status)
    return status


def _stop_at_end_of(descriptor: int) -> None:
    while os.read(descriptor, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
