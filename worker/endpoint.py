"""A worker's HTTP endpoint: /metrics for Prometheus, /health for whoever restarts it."""

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import REGISTRY, make_wsgi_app

from worker import metrics
from worker.errors import EndpointError
from worker.health import Health
from worker.service import Service
from worker.settings import Settings

Respond = Callable[[str, list[tuple[str, str]]], Any]


class _Server(ThreadingMixIn, WSGIServer):
    """A thread for each client, so that a silent one holds up nobody."""

    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    timeout = 5

    def log_message(self, format: str, *args: Any) -> None:
        """A line for each scrape would hide the rest."""


@contextmanager
def endpoint(service: Service, settings: Settings) -> Iterator[int | None]:
    """Serve inside the block, and give the port; nothing where no port is set.

    Raises:
        EndpointError: the port is taken, or may not be used.
    """
    if settings.metrics_port is None:
        yield None
        return
    host = settings.metrics_host
    try:
        server = make_server(host, settings.metrics_port, _application(service), _Server, _Quiet)
    except OSError as error:
        raise EndpointError(
            f"the metrics port {host}:{settings.metrics_port} cannot be used ({error.strerror}); give each worker of a "
            "machine its own GENARM_METRICS_PORT"
        ) from None
    thread = threading.Thread(target=server.serve_forever, name="endpoint", daemon=True)
    collector = metrics.watch(service)
    thread.start()
    try:
        yield server.server_port
    finally:
        REGISTRY.unregister(collector)
        server.shutdown()
        server.server_close()


def _application(service: Service) -> Callable[[dict[str, Any], Respond], Iterable[bytes]]:
    prometheus, health = make_wsgi_app(REGISTRY), Health(service)

    def application(environ: dict[str, Any], respond: Respond) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/metrics":
            found: Iterable[bytes] = prometheus(environ, respond)
            return found
        if path == "/health":
            problems = health.problems()
            status = "503 Service Unavailable" if problems else "200 OK"
            body = {"status": "failing" if problems else "ok", "problems": problems, "worker": service.owner}
            respond(status, [("Content-Type", "application/json")])
            return [json.dumps(body).encode()]
        respond("404 Not Found", [("Content-Type", "text/plain")])
        return [b"/metrics or /health\n"]

    return application
