"""Stand-ins for commands that a test machine lacks or must not run: they check what they are asked for."""

import argparse
import os
import re
import signal
import sqlite3
import subprocess
import sys
import tomllib
from pathlib import Path

from tests.children import child, take_interrupts
from tests.deployment.compose import load

ROOT = Path(os.environ["DOCS_ROOT"])
GENARM = [sys.executable, "-c", "from worker.cli import main; main()"]


def until_ready(*words):
    """Run `genarm worker` or `genarm up` until it says that it is ready, then stop it."""
    take_interrupts()  # bash ignores them for what runs in its background
    with child([*GENARM, *words], stderr=subprocess.PIPE, text=True) as process:
        said = []
        for line in process.stderr:
            said.append(line)
            if "ready" in line.lower():
                process.send_signal(signal.SIGINT if words[0] == "up" else signal.SIGTERM)
                break
        else:
            sys.exit("".join(said))
        process.communicate(timeout=60)
        sys.exit(process.returncode)


def make(*targets):
    """Every target is in the Makefile."""
    known = set(re.findall(r"^([\w-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    sys.exit(0 if set(targets) <= known else f"make {targets}: not in {sorted(known)}")


def pip(*words):
    """Every extra exists."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    asked = re.fullmatch(r"genarm\[([\w,]+)\]", words[-1])
    sys.exit(0 if words[0] == "install" and asked and set(asked[1].split(",")) <= set(extras) else f"pip {words}")


def sqlite3_(file, query):
    """Print the rows of a query; there must be some."""
    rows = sqlite3.connect(file).execute(query).fetchall()
    print(rows)
    sys.exit(0 if rows else "no rows")


def docker(*words):
    """`docker compose` with files, profiles and services that exist."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("compose", choices=["compose"])
    parser.add_argument("-f", action="append", default=[], dest="files")
    parser.add_argument("--profile")
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up")
    for flag in ("--build", "--detach"):
        up.add_argument(flag, action="store_true")
    up.add_argument("--scale", type=lambda text: text.split("="))
    once = commands.add_parser("run")
    for flag in ("--rm", "-T"):
        once.add_argument(flag, action="store_true")
    once.add_argument("service")
    once.add_argument("genarm", nargs=argparse.REMAINDER)
    asked = parser.parse_args(words)
    os.chdir(ROOT)
    services = load(*(asked.files or ["compose.yaml"]), REDIS_PASSWORD="x", POSTGRES_PASSWORD="x")["services"]
    assert asked.profile in {None, *(name for one in services.values() for name in one.get("profiles", []))}
    if asked.command == "up":
        assert asked.scale is None or (asked.scale[0] in services and int(asked.scale[1]) > 0)
        return
    assert asked.service in services
    assert asked.genarm[0] == "genarm"
    os.chdir(os.environ["PWD"])
    sys.exit(subprocess.run([*GENARM, *asked.genarm[1:]], check=False).returncode)


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    {"until-ready": until_ready, "make": make, "pip": pip, "sqlite3": sqlite3_, "docker": docker}[name](*arguments)
