"""Runs what a page tells people to type, in bash, with stand-ins for what a test machine lacks.

genarm         the real command; `up` and `worker` are stopped once they are ready, `up &` at the end of the page
make, pip      check that the target, the extra, exists
docker         checks that the files, services, profiles exist, and runs `genarm job submit` of a `run` for real
sqlite3        Python's
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path.cwd()
PREAMBLE = f"""
set -euo pipefail
genarm() {{
    case "$1" in
        up|worker) {sys.executable} -m tests.docs.stand_ins until-ready "$@" ;;
        *) {sys.executable} -c 'from worker.cli import main; main()' "$@" ;;
    esac
}}
start_up() {{
    {sys.executable} -c 'from worker.cli import main; main()' up 2> up.log &
    up=$!
    trap 'kill $up; wait $up' EXIT
    until grep -q Ready up.log; do sleep 0.1; kill -0 $up; done
}}
for name in make pip docker sqlite3; do
    eval "$name() {{ {sys.executable} -m tests.docs.stand_ins $name \\"\\$@\\"; }}"
done
"""


def run(script: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run lines in a folder; stops at the first that fails."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith("GENARM_")}
    environment = outside | {"PYTHONPATH": str(ROOT), "GENARM_DTYPE": "float32", "DOCS_ROOT": str(ROOT)} | variables
    lines = PREAMBLE + script.replace("genarm up &", "start_up")
    return subprocess.run(
        ["bash", "-c", lines], cwd=folder, env=environment, capture_output=True, text=True, timeout=250, check=False
    )
