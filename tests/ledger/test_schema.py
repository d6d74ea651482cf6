"""The schema and its migrations, on both databases; errors of connecting."""

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from db import jobs, session
from db.errors import DatabaseUnreachableError, DbError, SchemaOutdatedError
from db.migrations import runner
from db.tables import metadata


def test_the_migrations_make_the_tables_of_the_code(ledger):
    with ledger.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": False})
        assert compare_metadata(context, metadata) == []


def test_down_and_up_again(ledger, submit):
    assert runner.current(ledger) == runner.head()
    runner.downgrade(ledger, "base")
    assert runner.current(ledger) is None
    with pytest.raises(SchemaOutdatedError, match="genarm db upgrade"):
        session.check_schema(ledger)
    with pytest.raises(SchemaOutdatedError, match="genarm db upgrade"):
        jobs.list_jobs(ledger)
    runner.upgrade(ledger)
    runner.upgrade(ledger)
    session.check_schema(ledger)
    submit()


def test_an_unknown_revision_is_refused(ledger):
    with pytest.raises(DbError, match="nonsense"):
        runner.upgrade(ledger, "nonsense")


def test_the_views_answer_in_sql(ledger, submit, run_all):
    job = submit(rows=4, samples=2)
    run_all(failing={3}, samples=2)
    with ledger.connect() as connection:
        rows = connection.execute(sa.text("SELECT * FROM results ORDER BY row_index, sample")).mappings().all()
        progress = connection.execute(sa.text("SELECT * FROM job_progress")).mappings().one()
    assert [row["custom_id"] for row in rows] == ["id0", "id0", "id1", "id1", "id2", "id2", "id3"]
    assert "arm" in rows[0]["rewards"]
    assert (rows[-1]["error_code"], rows[-1]["completion"]) == ("prompt_too_long", None)
    assert (progress["job_id"], progress["completed_rows"], progress["failed_rows"]) == (job.id, 3, 1)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "not one"),
        ("mysql://me:secret@host/db", "SQLite and PostgreSQL"),
        ("sqlite://", "must be a file"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused(url, message):
    with pytest.raises(DbError, match=message) as caught:
        session.connect(url)
    assert "secret" not in str(caught.value)


def test_a_database_that_does_not_answer_is_named_without_its_password():
    ledger = session.connect("postgresql://me:secret@127.0.0.1:1/none")
    with pytest.raises(DatabaseUnreachableError, match=r"127\.0\.0\.1") as caught:
        jobs.list_jobs(ledger)
    assert "secret" not in str(caught.value)
    assert session.redacted("postgresql://me:secret@host/name") == "postgresql://me:***@host/name"
