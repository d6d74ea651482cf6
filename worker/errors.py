"""What can go wrong in the service; every message is one line for the user, with the remedy."""


class ServiceError(Exception):
    """Base of the errors below."""


class BaseNotServedError(ServiceError):
    """A worker that serves some bases alone was given a shard of another."""


class BrokerUnreachableError(ServiceError):
    """Redis does not answer. What was submitted is safe in the ledger; workers find it when Redis is back."""


class RedisStartError(ServiceError):
    """The embedded redis-server could not be started."""


class HomeError(ServiceError):
    """The home folder cannot be made, or nothing can be written there."""


class WorkerDiedError(ServiceError):
    """The worker process that this process started has ended by itself."""


class EngineEndedError(ServiceError):
    """The engine of this process has ended by itself: its rows are lost, and only a new process goes on."""


class EndpointError(ServiceError):
    """The port for metrics and health cannot be used, or nothing healthy answers there."""


class TracingError(ServiceError):
    """Traces are wanted, and OpenTelemetry is not installed."""
