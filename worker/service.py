"""The parts of a worker process, started and stopped together."""

import os
import secrets
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING

from celery import Celery
from celery.utils.log import get_logger

import db.shards
from db.errors import DatabaseUnreachableError
from db.session import Ledger
from worker.closer import Closer
from worker.company import Company
from worker.engines import EngineFactory, Engines
from worker.errors import BrokerUnreachableError
from worker.heartbeats import Ending, Heartbeats
from worker.ledger import open_ledger
from worker.lookout import Lookout
from worker.patience import Patience
from worker.rescuer import Rescuer
from worker.settings import Settings
from worker.writer import Writer

if TYPE_CHECKING:
    from worker.consumer import Consumer

log = get_logger(__name__)

HAND_BACK_SECONDS = 0.7
"""Time for the threads to let go of their shards once told to."""
STOP_SECONDS = 0.8
"""Time for all threads of the service to end; what does not, is left behind."""


class Service:
    """Ledger, engine, writer, heartbeats, rescuer and lookout of one worker process.

    The pool starts and stops it; the task runs shards with it. In a process that only publishes it stays unstarted.
    """

    ledger: Ledger
    writer: Writer
    closer: Closer
    heartbeats: Heartbeats
    rescuer: Rescuer
    lookout: Lookout
    consumer: "Consumer | None" = None
    """Celery's, once it is made."""

    def __init__(self, app: Celery, settings: Settings, engine_factory: EngineFactory) -> None:
        self.app = app
        self.settings = settings
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"
        self.engines = Engines(engine_factory, settings)
        self.company = Company()
        self.is_started = False
        self.is_draining = False
        self.has_lost_engine = False
        self._stopping = threading.Event()
        self.database = Patience("the database", DatabaseUnreachableError, self._stopping)
        self.broker = Patience("Redis", BrokerUnreachableError, self._stopping)

    def prepare(self) -> None:
        """Open the ledger, waiting for the database where it is away, and make the engine.

        Raises:
            SchemaOutdatedError: the database has another schema.
        """
        self.ledger = self.database.insist(lambda: open_ledger(self.settings))
        self.engines.make()

    def start(self) -> None:
        """Start all threads, once all is prepared."""
        settings = self.settings
        self.writer = Writer(self.ledger, self.database)
        self.closer = Closer(self.ledger, self.database)
        self.heartbeats = Heartbeats(
            self.ledger, self.database, settings.lease_seconds, settings.heartbeat_seconds, self._stopping
        )
        self.rescuer = Rescuer(self.app, self.ledger, settings, self.database, self.broker, self._stopping)
        self.lookout = Lookout(self.app, self.ledger, settings, self.database, self.broker, self._stopping)
        self.engines.start()
        self.writer.start()
        self.heartbeats.start()
        self.lookout.start()
        self.rescuer.start()
        self.is_started = True

    def drain(self, grace_seconds: float) -> None:
        """Claim nothing more, give the shards in work time to finish, then hand the rest back."""
        self.is_draining = True
        if not self.is_started:
            return
        if not self.heartbeats.wait_for_none(grace_seconds):
            self.hand_back()
            self.heartbeats.wait_for_none(HAND_BACK_SECONDS)
        for run in self.heartbeats.running():
            log.warning("shard %d does not let go; its lease is released without it", run.lease.shard_id)
            self.database.attempt(lambda lease=run.lease: db.shards.release(self.ledger, lease))  # type: ignore[misc]

    def lose_engine(self) -> None:
        """Stop the process, whose engine has ended by itself: only a new one goes on. Called from any thread."""
        if self.has_lost_engine:
            return
        self.has_lost_engine = self.is_draining = True
        log.critical("the engine of this worker has ended; the worker stops, to be started anew")
        os.kill(os.getpid(), signal.SIGTERM)

    def hand_back(self) -> None:
        """Make all shards in work drop their unfinished rows and release their leases."""
        for run in self.heartbeats.running():
            run.end(Ending.HANDED_BACK)

    def hand_back_soon(self) -> None:
        """The same from a signal handler, where no lock may be taken."""
        threading.Thread(target=self.hand_back, name="hand-back", daemon=True).start()

    def stop(self) -> None:
        """Stop all threads; what is finished is written, and what was handed back published, unless a backend is away.

        Returns within STOP_SECONDS: a thread that hangs in a step or in the network is left to the end of the process.
        """
        if self._stopping.is_set() or not self.is_started:
            return
        self._stopping.set()
        deadline = time.monotonic() + STOP_SECONDS
        engines = threading.Thread(target=self.engines.stop, name="stop-engines", daemon=True)
        engines.start()
        self.writer.stop(deadline - time.monotonic())
        self.rescuer.finish(max(0.0, deadline - time.monotonic()))
        engines.join(max(0.0, deadline - time.monotonic()))
        self.ledger.dispose()
