"""How fast a report with many completions opens, and how large it is, beside the bars that it should keep.

    python -m benchmarks.report --completions 10000 --tokens 128

Opens the page in headless Chromium (Debian's package chromium) and prints the time of the first paint, of the first
shaded tokens, and of a search; exits with 1 where a bar is missed.
"""

import argparse
import random
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

from benchmarks.chromium import chromium
from db.jobs import Job, JobProgress, JobStatus
from worker.report.collect import ReportData, facts_of
from worker.report.page import page

VOCABULARY = 30_000
MOST_MEGABYTES = 60
MOST_SECONDS = 3.0
"""Until the first paint; both of 10,000 completions of 128 tokens."""


def main() -> None:
    """Make a page, and open it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--completions", type=int, default=10_000)
    parser.add_argument("--tokens", type=int, default=128)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.html"
        path.write_text(made(arguments.completions, arguments.tokens), encoding="utf-8")
        megabytes = path.stat().st_size / 1e6
        print(f"{megabytes:.1f} MB, at most {MOST_MEGABYTES}")
        paint = measure(path)
        print(f"first paint {paint:.2f} s at worst, at most {MOST_SECONDS}")
    sys.exit(megabytes > MOST_MEGABYTES or paint > MOST_SECONDS)


def made(count: int, tokens: int) -> str:
    """A page of random completions."""
    chance = random.Random(0)
    words = {
        n: (" " + "".join(chance.choices("abcdefghijklmnop", k=chance.randrange(2, 9)))).encode()
        for n in range(VOCABULARY)
    }
    data = ReportData(["helpful", "harmless"])
    prompts = (SimpleNamespace(row={"prompt": f"What do you think of number {index}?"}) for index in range(count))
    data.add(((prompt, [row(chance, index, tokens, words)]) for index, prompt in enumerate(prompts)), count)
    now = datetime.now(UTC)
    job = Job(
        id="job-1", kind="generate", name=None, key=None, sweep=None, status=JobStatus.COMPLETED, priority=5,
        spec={"base": "b"}, samples=1, total_rows=count, error_code=None, error_message=None, created_at=now,
        started_at=now, finished_at=now,
    )  # fmt: skip
    data.facts = facts_of(JobProgress(job, count, 0, 0, 0, 0, 0, count * tokens, 1.0, 1.0, None, 1.0), count)
    return page(data, {token: words[token] for token in data.token_ids})


def row(chance: random.Random, index: int, tokens: int, words: dict[int, bytes]) -> dict[str, object]:
    """One output row."""
    ids = [chance.randrange(VOCABULARY) for _ in range(tokens)]
    base = [-chance.expovariate(0.4) for _ in ids]
    rewards = {arm: [value + chance.gauss(0, 1) for value in base] for arm in ("helpful", "harmless")}
    return {
        "id": f"row-{index}",
        "sample": 0,
        "completion": "".join(words[token].decode() for token in ids),
        "finish_reason": "stop",
        "tokens": ids,
        "logprobs": [value + chance.random() for value in base],
        "base_logprobs": base,
        "rewards": {arm: sum(values) for arm, values in rewards.items()},
        "token_rewards": rewards,
        "error": None,
    }


def measure(path: Path) -> float:
    """Open the page three times; the slowest first paint in seconds."""
    paints = []
    with chromium() as browser:
        for _ in range(3):
            opened = browser.new_page(viewport={"width": 1280, "height": 900})
            started = time.perf_counter()
            opened.goto(path.as_uri(), wait_until="commit")
            opened.wait_for_selector(".token")
            shaded = time.perf_counter() - started
            opened.wait_for_selector("#distribution svg.main-svg")
            charted = time.perf_counter() - started
            paint = float(opened.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")) / 1000
            started = time.perf_counter()
            opened.locator("#search").fill("number 9999?")
            opened.wait_for_function("document.getElementById('count').textContent.startsWith('1 of')")
            searched = time.perf_counter() - started
            print(f"first paint {paint:.2f} s, tokens {shaded:.2f} s, charts {charted:.2f} s, search {searched:.2f} s")
            paints.append(paint)
            opened.close()
    return max(paints)


if __name__ == "__main__":
    main()
