"""Memory and speed of a submission, for a small file and one many times as large.

    python -m benchmarks.submission --megabytes 5 400

Each file is read and stored into a new SQLite ledger in a process of its own, whose highest memory is reported.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from db import jobs
from db.datasets import DatasetSource, open_dataset
from db.migrations import runner
from db.session import connect


def main() -> None:
    """Make the files, and submit each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[5, 400])
    parser.add_argument("--row-bytes", type=int, default=1000)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        one(Path(arguments.one))
        return
    for megabytes in arguments.megabytes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.jsonl"
            line = json.dumps({"prompt": "x" * (arguments.row_bytes - 15)}) + "\n"
            with path.open("w") as file:
                for _ in range(megabytes * 1_000_000 // arguments.row_bytes):
                    file.write(line)
            command = [sys.executable, "-m", "benchmarks.submission", "--one", str(path)]
            result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
            speed = result["rows"] / result["seconds"]
            print(
                f"{megabytes:6} MB  {result['rows']:8} rows  {speed:8.0f} rows/s  {result['peak_mib']:.0f} MiB at most"
            )


def one(path: Path) -> None:
    """Submit one file, and print what it took."""
    ledger = connect(f"sqlite:///{path.with_suffix('.db')}")
    runner.upgrade(ledger)
    started = time.perf_counter()
    job = jobs.submit(ledger, jobs.NewJob(spec={}, samples=1), open_dataset(DatasetSource(str(path))))
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"rows": job.total_rows, "seconds": seconds, "peak_mib": peak}))


if __name__ == "__main__":
    main()
