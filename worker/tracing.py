"""OpenTelemetry traces, where they are wanted: a span per shard, with its job, rows and tokens."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from worker.errors import TracingError
from worker.settings import Settings

SERVICE = "genarm"

_tracer: Any = None


def set_up(settings: Settings, exporter: Any = None) -> None:
    """Send spans as the standard OTEL_ variables say (OTEL_EXPORTER_OTLP_ENDPOINT); nothing unless tracing is on.

    Args:
        settings: the settings.
        exporter: where spans go instead.

    Raises:
        TracingError: OpenTelemetry is not installed.
    """
    global _tracer  # noqa: PLW0603 - one tracer per process, as in OpenTelemetry itself
    if not settings.tracing:
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise TracingError("GENARM_TRACING needs OpenTelemetry: pip install 'genarm[tracing]'") from None
    provider = TracerProvider(resource=Resource.create({"service.name": SERVICE}))
    provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter()))
    _tracer = provider.get_tracer(SERVICE)


@contextmanager
def span(name: str, **attributes: Any) -> Iterator[dict[str, Any]]:
    """A span around the block; what the block puts into the dictionary becomes attributes at its end."""
    found: dict[str, Any] = {}
    if _tracer is None:
        yield found
        return
    with _tracer.start_as_current_span(name, attributes=attributes) as current:
        yield found
        current.set_attributes(found)
