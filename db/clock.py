"""Time by the database's clock, so that workers' clocks do not matter."""

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import GenericFunction
from sqlalchemy.types import TypeDecorator

SQLITE_FORMAT = "%Y-%m-%d %H:%M:%f"


class UtcTime(TypeDecorator[datetime]):
    """An aware time in UTC: `timestamptz` on PostgreSQL, text like `2026-01-31 23:59:59.123` on SQLite."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> Any:
        """Text on SQLite."""
        return sa.Text() if dialect.name == "sqlite" else sa.DateTime(timezone=True)

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> datetime | None:
        """Aware, in UTC."""
        if value is None:
            return None
        parsed = datetime.fromisoformat(value) if isinstance(value, str) else value
        return parsed.replace(tzinfo=UTC) if parsed.tzinfo is None else parsed.astimezone(UTC)


class from_now(GenericFunction[datetime]):  # noqa: N801 - it is a function of SQL
    """The time of the database's clock, a number of seconds (float, may be negative) from now."""

    type = UtcTime()
    inherit_cache = True

    def __init__(self, seconds: float) -> None:
        super().__init__(sa.literal(float(seconds), sa.Float()))


@compiles(from_now, "postgresql")
def _on_postgresql(element: Any, compiler: Any, **options: Any) -> str:
    seconds = compiler.process(element.clauses, **options)
    return f"(clock_timestamp() + make_interval(secs => {seconds}))"


@compiles(from_now, "sqlite")
def _on_sqlite(element: Any, compiler: Any, **options: Any) -> str:
    seconds = compiler.process(element.clauses, **options)
    return f"strftime('{SQLITE_FORMAT.replace('%', '%%')}', 'now', printf('%+.3f seconds', {seconds}))".replace(
        "%%", "%"
    )


def now() -> from_now:
    """The time of the database's clock."""
    return from_now(0.0)
