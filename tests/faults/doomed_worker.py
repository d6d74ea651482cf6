"""A worker with the fake engine that kills itself at a fault point."""

import os
import signal
import sys

from db import faults
from db.faults import Point
from tests.service.fake_engine import FakeEngine
from worker.__main__ import main

if __name__ == "__main__":
    (wish,) = [argument for argument in sys.argv if argument.startswith("--die-at=")]
    faults.at(Point[wish.removeprefix("--die-at=")], lambda: os.kill(os.getpid(), signal.SIGKILL))
    sys.exit(main([argument for argument in sys.argv[1:] if argument != wish], FakeEngine))
