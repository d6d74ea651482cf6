"""Images without a registry: Python, PostgreSQL and Redis of Debian, under the names of compose.yaml, and genarm's."""

import functools
import http.server
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from packaging.utils import canonicalize_name, parse_wheel_filename

from tests.deployment.containers.shell import Failed, Shell

HERE = Path(__file__).parent
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
BASE = f"python:{PYTHON}-slim"
MIRROR = "http://deb.debian.org/debian"
BASE_PACKAGES = "python3,python3-venv,ca-certificates"
OF_THE_BUILD = ("setuptools>=77", "wheel", "async-timeout>=4.0.3")
"""What `pip download` leaves out: the build's own, and what redis wants of Debian 12's Python, older than 3.11.3."""
COMPOSE_SUITE = "trixie"
"""The first Debian with version 2 of docker compose; one static program."""


def make_base(shell: Shell, folder: Path) -> None:
    """An image like the official one of Python, with the Python of this machine's Debian.

    Raises:
        Failed: this machine's Debian has another Python than the tests.
    """
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    suite = release.get("VERSION_CODENAME", "")
    archive = folder / f"{suite}.tar"
    if not archive.is_file():
        root = folder / "root"
        shutil.rmtree(root, ignore_errors=True)
        debs = folder / "debs"
        debs.mkdir(exist_ok=True)
        options = ("--variant=minbase", f"--include={BASE_PACKAGES}", f"--cache-dir={debs}")
        shell.run("debootstrap", *options, suite, root, MIRROR)
        if not (root / f"usr/bin/python{PYTHON}").exists():
            raise Failed(f"Debian {suite} has no Python {PYTHON}; make .venv with Debian's own python3")
        (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
        shell.run("tar", "-C", root, "-cf", archive, ".")
        shutil.rmtree(root)
    path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    shell.run("docker", "import", "--change", f"ENV {path}", "--change", 'CMD ["python3"]', archive, BASE)


def make_servers(shell: Shell, names: tuple[str, ...]) -> None:
    """PostgreSQL and Redis from Debian, under the names that compose.yaml uses."""
    tags = [word for name in names for word in ("--tag", name)]
    file = HERE / "servers.Dockerfile"
    shell.run("docker", "build", "--network=host", f"--build-arg=BASE={BASE}", *tags, "--file", file, HERE)


def download_wheels(shell: Shell, folder: Path) -> Path:
    """An index of what the image needs, by this machine's pip and its settings: a folder as PEP 503 has it."""
    wheels, index = folder / "wheels", folder / "index"
    pip = (sys.executable, "-m", "pip", "download", "--quiet", "--dest", wheels, "--constraint", "constraints.txt")
    shell.run(*pip, "torch", ".[postgres,parquet,gguf]", *OF_THE_BUILD)
    shutil.rmtree(index, ignore_errors=True)
    for wheel in wheels.glob("*.whl"):
        place = index / "simple" / canonicalize_name(parse_wheel_filename(wheel.name)[0])
        place.mkdir(parents=True, exist_ok=True)
        (place / wheel.name).hardlink_to(wheel)
    return index


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve a folder on this machine alone, and give its URL."""
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/simple/"
        server.shutdown()


def make_genarm(shell: Shell, tag: str, index: str) -> None:
    """The image of the Dockerfile, as it is built behind a mirror."""
    arguments = {"PYTHON": PYTHON, "PIP_INDEX_URL": index, "TORCH_INDEX_URL": index}
    words = [f"--build-arg={name}={value}" for name, value in arguments.items()]
    shell.run("docker", "build", "--network=host", *words, "--tag", tag, ".")


def find_compose(shell: Shell, folder: Path) -> Path:
    """Version 2 of docker compose: this machine's, else Debian's, unpacked into `folder`."""
    for place in (
        "/usr/libexec/docker/cli-plugins",
        "/usr/lib/docker/cli-plugins",
        "/usr/local/lib/docker/cli-plugins",
    ):
        if (plugin := Path(place) / "docker-compose").is_file():
            return plugin
    found = folder / "compose/usr/libexec/docker/cli-plugins/docker-compose"
    if not found.is_file():
        _download_compose(shell, folder)
    return found


def _download_compose(shell: Shell, folder: Path) -> None:
    apt = folder / "apt"
    for name in ("state/lists/partial", "cache/archives/partial"):
        (apt / name).mkdir(parents=True, exist_ok=True)
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    (apt / "sources.list").write_text(f"deb [signed-by={keyring}] {MIRROR} {COMPOSE_SUITE} main\n")
    places = {"sourcelist": "sources.list", "state": "state", "cache": "cache"}
    options = [
        f"-oDir::Etc::sourcelist={apt / places['sourcelist']}",
        "-oDir::Etc::sourceparts=/dev/null",
        f"-oDir::State={apt / places['state']}",
        f"-oDir::Cache={apt / places['cache']}",
        "-oAPT::Sandbox::User=root",
        "-oAcquire::Languages=none",
    ]
    shell.run("apt-get", *options, "--quiet", "update")
    shell.run("apt-get", *options, "--quiet", "download", "docker-compose", cwd=apt)
    (package,) = apt.glob("docker-compose_*.deb")
    shell.run("dpkg-deb", "--extract", package, folder / "compose")
    subprocess.run(["rm", "-r", str(apt)], check=True)
