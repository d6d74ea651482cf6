"""Makes the images of report.md: the report of a sweep over the weight of an example ARM, in Debian's Chromium.

make screenshots
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.chromium import chromium
from examples.demo import ARM, PROMPTS, base_model

IMAGES = Path(__file__).parent / "images"
ROWS = 24
WIDTH, HEIGHT = 1180, 1140
"""Pixels: the summary and three charts."""


def main() -> None:
    """Run the sweep, and take the pictures."""
    with tempfile.TemporaryDirectory() as folder:
        take(report(Path(folder)))


def report(folder: Path) -> Path:
    """Run the sweep and write its report."""
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(PROMPTS.read_text().splitlines(keepends=True)[:ROWS]))
    sampling = ["-n", "2", "--max-new-tokens", "48", "--seed", "1"]
    sweep = ["--arm", str(ARM.resolve()), "1", "--sweep", "positive=0,0.5,1,2", "--name", "positive, four weights"]
    ran = genarm(folder, "run", prompts.name, "-o", "out.jsonl", "--base", base_model(), *sampling, *sweep, "--json")
    genarm(folder, "job", "report", json.loads(ran)["id"], "-o", "report.html")
    return folder / "report.html"


def genarm(folder: Path, *words: str) -> str:
    """Run a command in a folder; what it prints on stdout."""
    command = [sys.executable, "-m", "worker.cli", *words]
    return subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=True).stdout


def take(report: Path) -> None:
    """The charts by day, and by night the reader with a token's numbers."""
    size = {"width": WIDTH, "height": HEIGHT}
    with chromium() as browser:
        page = browser.new_page(viewport=size, color_scheme="light")
        page.goto(report.as_uri())
        page.wait_for_selector("#front svg.main-svg")
        page.screenshot(path=IMAGES / "report.png")
        page = browser.new_page(viewport=size, color_scheme="dark")
        page.goto(report.as_uri())
        page.wait_for_selector("#front svg.main-svg")
        page.locator("#reader").evaluate("reader => reader.scrollIntoView()")
        page.locator("article").nth(2).locator(".token").nth(9).hover()
        page.screenshot(path=IMAGES / "reader.png")


if __name__ == "__main__":
    main()
