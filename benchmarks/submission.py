"""Memory and speed of a submission, for a small file and one many times as large.

    python -m benchmarks.submission --megabytes 5 400 --format parquet

The prompts are random, so that no format shrinks them to nothing; a Parquet file has one row group, as of pandas.
Each file is read and stored into a new SQLite ledger in a process of its own, whose highest memory is reported.
"""

import argparse
import base64
import gzip
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from db import jobs
from db.datasets import DatasetSource, open_dataset
from db.migrations import runner
from db.session import connect

FORMATS = ("jsonl", "jsonl.gz", "csv", "parquet")
WRITTEN_ROWS = 1000


def main() -> None:
    """Make the files, and submit each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[5, 400])
    parser.add_argument("--row-bytes", type=int, default=1000)
    parser.add_argument("--format", choices=FORMATS, default="jsonl")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        one(Path(arguments.one))
        return
    for megabytes in arguments.megabytes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"rows.{arguments.format}"
            write(path, megabytes * 1_000_000 // arguments.row_bytes, arguments.row_bytes - len('{"prompt": ""}\n'))
            command = [sys.executable, "-m", "benchmarks.submission", "--one", str(path)]
            result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
            speed = result["rows"] / result["seconds"]
            print(
                f"{megabytes:6} MB  {result['rows']:8} rows  {speed:8.0f} rows/s  {result['peak_mib']:.0f} MiB at most"
            )


def write(path: Path, rows: int, prompt_bytes: int) -> None:
    """Write a file of random prompts in the format of its name."""
    if path.suffix == ".parquet":
        import pyarrow as pa  # here, or it would count where JSONL is read
        import pyarrow.parquet as pq

        schema = pa.schema([("prompt", pa.string())])
        batches = (pa.record_batch([batch], schema=schema) for batch in prompts(rows, prompt_bytes))
        table = pa.Table.from_batches(batches, schema)
        pq.write_table(table, path, row_group_size=rows)
        return
    with gzip.open(path, "wt", 1) if path.suffix == ".gz" else path.open("w") as file:
        if path.suffix == ".csv":
            file.write("prompt\n")
        form = "{}\n" if path.suffix == ".csv" else '{{"prompt": "{}"}}\n'
        for batch in prompts(rows, prompt_bytes):
            file.writelines(form.format(prompt) for prompt in batch)


def prompts(rows: int, prompt_bytes: int) -> Iterator[list[str]]:
    """Random prompts, a thousand at a time."""
    chance = random.Random(0)
    for first in range(0, rows, WRITTEN_ROWS):
        count = min(WRITTEN_ROWS, rows - first)
        yield [base64.b64encode(chance.randbytes(prompt_bytes)).decode()[:prompt_bytes] for _ in range(count)]


def one(path: Path) -> None:
    """Submit one file, and print what it took."""
    ledger = connect(f"sqlite:///{path.parent / 'ledger.db'}")
    runner.upgrade(ledger)
    started = time.perf_counter()
    job = jobs.submit(ledger, jobs.NewJob(spec={}, samples=1), open_dataset(DatasetSource(str(path))))
    seconds = time.perf_counter() - started
    # Of this process alone; getrusage begins with the memory of the process that started it.
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    print(json.dumps({"rows": job.total_rows, "seconds": seconds, "peak_mib": int(peak[1]) / 1024 if peak else 0}))


if __name__ == "__main__":
    main()
