"""`make containers`: the image from the Dockerfile, and compose.yaml in real containers, without a registry.

Needs root, Debian's `docker.io` and `debootstrap`, and the network of this machine's apt and pip.
"""

import os
import sys
from pathlib import Path

from tests.deployment.compose import load
from tests.deployment.containers import images
from tests.deployment.containers.daemon import docker_engine
from tests.deployment.containers.shell import Failed, Shell, missing
from tests.deployment.containers.strange import check_strange_containers
from tests.deployment.containers.topology import Topology

LOG = Path("build/containers.log")
FOLDER = Path("build/containers").absolute()


def main() -> int:
    """Exit code."""
    if os.getuid() != 0 or (programs := missing(["dockerd", "docker", "debootstrap"])):
        lacking = (
            "run it as root" if os.getuid() else f"apt-get install docker.io debootstrap (no {', '.join(programs)})"
        )
        print(f"make containers: {lacking}", file=sys.stderr)
        return 2
    FOLDER.mkdir(parents=True, exist_ok=True)
    # Debian's client goes first, and none of this machine's settings for Docker or genarm count.
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("DOCKER_", "GENARM_", "COMPOSE_"))
    }
    shell = Shell(LOG, kept | {"PATH": f"/usr/sbin:/usr/bin:/sbin:/bin:{os.environ['PATH']}"})
    try:
        with docker_engine(shell, FOLDER / "data"):
            build(shell)
            watch_a_job(shell)
    except (Failed, KeyboardInterrupt) as error:
        shell.say(f"FAILED: {error or 'interrupted'}")
        return 1
    shell.say(f"all as it should be; the log is {LOG}")
    return 0


def build(shell: Shell) -> None:
    """All images of compose.yaml."""
    services = load("compose.yaml", REDIS_PASSWORD="x", POSTGRES_PASSWORD="x")["services"]
    shell.say("Debian's Python, as a base image")
    images.make_base(shell, FOLDER)
    shell.say("PostgreSQL and Redis")
    images.make_servers(shell, (services["postgres"]["image"], services["redis"]["image"]))
    shell.say("wheels for the image")
    index = images.download_wheels(shell, FOLDER)
    with images.serving(index) as url:
        shell.say("genarm's image, from an index of packages on this machine")
        images.make_genarm(shell, services["worker"]["image"], url)
    shell.say(shell.run("docker", "images", "--format", "{{.Repository}}:{{.Tag}} {{.Size}}").replace("\n", "  "))


def watch_a_job(shell: Shell) -> None:
    """The topology with two workers, a job, and what is killed under it."""
    topology = Topology(shell, images.find_compose(shell, FOLDER), FOLDER)
    shell.say("docker compose up, with two workers")
    topology.start()
    topology.check_rights()
    job_id = topology.submit()
    shell.say(f"submitted {job_id} through docker compose run")
    shell.wait("some rows are done", lambda: topology.done(job_id) >= 8, 300)
    for service in ("worker", "redis"):
        topology.kill(service)
        shell.say(f"killed {service} after {topology.done(job_id)} rows; it is back")
    topology.genarm("job", "watch", job_id)
    topology.check_rows(job_id)
    shell.say("the job has ended, and every row is there once")
    topology.check_logs()
    check_strange_containers(shell, topology)
    topology.compose("down", "--volumes")


if __name__ == "__main__":
    sys.exit(main())
