"""A Docker Engine of our own, which is gone with all that it holds when the block ends."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.children import child
from tests.deployment.containers.shell import Failed, Shell

START_SECONDS = 120
STOP_SECONDS = 60


@contextmanager
def docker_engine(shell: Shell, data: Path) -> Iterator[None]:
    """Run dockerd, and let the commands of `shell` talk to it.

    Args:
        shell: its environment gets DOCKER_HOST.
        data: a folder for images, containers and volumes; it is removed at the end.

    Raises:
        Failed: it does not start.
    """
    place = Path(tempfile.mkdtemp(prefix="dockerd-"))
    socket = place / "socket"
    words = ["dockerd", f"--data-root={data}", f"--exec-root={place / 'exec'}", f"--pidfile={place / 'pid'}"]
    shell.env |= {"DOCKER_HOST": f"unix://{socket}", "DOCKER_BUILDKIT": "1", "DOCKER_CONFIG": str(place)}
    words += ["--bridge=none", f"--host=unix://{socket}"]
    try:
        # A session of its own: Ctrl-C is for us, who still need it to clean up.
        with (place / "log").open("wb") as log, child(words, stdout=log, stderr=log, start_new_session=True) as daemon:
            try:
                shell.wait(
                    "dockerd answers",
                    lambda: _has_ended(daemon, place / "log") or not shell.result("docker", "info").returncode,
                    START_SECONDS,
                )
                yield
            finally:
                _remove_containers(shell)
                daemon.send_signal(signal.SIGTERM)
                with suppress(subprocess.TimeoutExpired):
                    daemon.wait(STOP_SECONDS)
    finally:
        shutil.rmtree(data, ignore_errors=True)
        shutil.rmtree(place, ignore_errors=True)


def _has_ended(daemon: "subprocess.Popen[bytes]", log: Path) -> bool:
    if daemon.poll() is None:
        return False
    last = (log.read_text(errors="replace").strip().splitlines() or [""])[-1]
    raise Failed(f"dockerd ended with {daemon.returncode}: {last}")


def _remove_containers(shell: Shell) -> None:
    ids = shell.run("docker", "ps", "--all", "--quiet", check=False).split()
    if ids and not shell.result("docker", "rm", "--force", "--volumes", *ids).returncode:
        shell.write(f"removed {len(ids)} containers")


def kill_process(shell: Shell, container: str) -> None:
    """Kill a container's first process as the kernel would: Docker takes it for a crash, and restarts it."""
    pid = int(shell.run("docker", "inspect", "--format", "{{.State.Pid}}", container))
    os.kill(pid, signal.SIGKILL)
