"""`python -m worker`: a worker, as the embedded mode starts it. All other options are Celery's own."""

import argparse
import sys
from collections.abc import Sequence

from worker.app import run_worker
from worker.engines import EngineFactory, make_engine
from worker.settings import Settings


def main(arguments: Sequence[str], engine_factory: EngineFactory = make_engine) -> int:
    """Run a worker with the settings of the environment."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--ready-fd", type=int)
    parser.add_argument("--lifeline-fd", type=int)
    ours, celerys = parser.parse_known_args(arguments)
    return run_worker(Settings(), celerys, engine_factory, ours.ready_fd, ours.lifeline_fd)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
