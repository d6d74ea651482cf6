"""Containers that are started in a way that cannot work: each says in one line what is wrong."""

from tests.deployment.containers.shell import Failed, Shell
from tests.deployment.containers.topology import Topology

PASSWORD = "not-the-password"
NOWHERE = f"postgresql://genarm:{PASSWORD}@127.0.0.1:1/genarm"
WAYS: tuple[tuple[str, tuple[str, ...], tuple[str, ...], str], ...] = (
    ("a user who does not own the home folder", ("--user=4242:4242",), ("genarm", "doctor"), "ermission"),
    (
        "a database that does not answer",
        (f"--env=GENARM_DATABASE_URL={NOWHERE}",),
        ("genarm", "db", "upgrade"),
        "does not answer",
    ),
    (
        "a wrong password for Redis",
        (f"--env=GENARM_BROKER_URL=redis://:{PASSWORD}@redis:6379/0",),
        ("genarm", "doctor"),
        "refuses the user or the password",
    ),
)
"""What is strange, options of `docker compose run`, the command, and what one of its lines says."""


def check_strange_containers(shell: Shell, topology: Topology) -> None:
    """Run them all.

    Raises:
        Failed: one succeeds, shows a traceback or a password, or does not say what is wrong.
    """
    for what, options, command, word in WAYS:
        done = topology.result(
            "run", "--rm", "--no-deps", "-T", *options, "worker", *command, input='{"prompt": "x"}\n'
        )
        said = [line.strip() for line in done.stdout.split("\n") if word in line]
        if not done.returncode or "Traceback" in done.stdout or PASSWORD in done.stdout or not said:
            raise Failed(f"{what}: exit {done.returncode}: {done.stdout.strip()[-300:]}")
        shell.say(f"{what}: {said[0]}")
