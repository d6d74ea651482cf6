"""`python -m worker`: a worker, as the embedded mode starts it. All other options are Celery's own."""

import argparse
import sys
from collections.abc import Sequence

from db.errors import DbError
from models.errors import ModelsError
from worker.app import run_worker
from worker.engines import EngineFactory, make_engine
from worker.errors import ServiceError
from worker.settings import Settings


def main(arguments: Sequence[str], engine_factory: EngineFactory = make_engine) -> int:
    """Run a worker with the settings of the environment."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--ready-fd", type=int)
    parser.add_argument("--lifeline-fd", type=int)
    ours, celerys = parser.parse_known_args(arguments)
    try:
        return run_worker(Settings(), celerys, engine_factory, ours.ready_fd, ours.lifeline_fd)
    except (DbError, ModelsError, ServiceError) as error:  # the command that started it shows the end of the log
        sys.stderr.write(f"Error: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
