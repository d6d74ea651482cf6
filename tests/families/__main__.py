"""`make families`: run every decoder-only family of transformers, each in a process of its own, and write the table.

It goes on where it stopped: results are kept in build/families.json, by family and version of transformers.
"""

import json
import os
import signal
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
from transformers.utils import logging

from tests.families.configurations import FAMILIES
from tests.families.trial import trial

KEPT = Path("build/families.json")
PAGE = Path("docs/families.md")
SECONDS = 240

HEAD = """\
# Model families

Every decoder-only family of transformers {version}, as `make families` finds it: a tiny random model of the family and
an ARM of the same family run on a ragged batch by the engine, and by transformers' eager attention row by row, in
float32. **exact** says that every token is the same and every log-probability and reward within 1e-4; **refused** says
what `genarm arm check`, `run` and `job submit` answer before anything is stored. At submit the same question is asked
of the model at hand, by a miniature of its own configuration, so that the table need not know it.

{exact} families are exact, {refused} are refused.

| family | |
| --- | --- |
"""
TAIL = """
No tiny model of these families could be made here ({count}; most need numbers that go together, or more packages), so
that they are not in the table; the check at submit is the same for them: {names}.
"""


def main() -> None:
    """Run the families that have no result yet, or those named, and write the table."""
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    KEPT.parent.mkdir(exist_ok=True)
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    key = f"transformers {version('transformers')}"
    results: dict[str, str] = kept.setdefault(key, {})
    for family in sys.argv[1:] or [one for one in FAMILIES if one not in results]:
        results[family] = _in_a_process(family)
        print(f"{family}: {results[family]}", flush=True)
        KEPT.write_text(json.dumps(kept, indent=1))
    PAGE.write_text(_page({family: results[family] for family in FAMILIES if family in results}))
    if wrong := [family for family, result in results.items() if not result.startswith(("exact", "refused", "none"))]:
        sys.exit(f"wrong: {', '.join(wrong)}")


def _in_a_process(family: str) -> str:
    """The result of a family; a crash or a hang costs that one alone."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(SECONDS)
        with tempfile.TemporaryDirectory() as folder:
            os.write(writing, _result(family, Path(folder)).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        result = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    return result or f"none: its process ended with status {status}"


def _result(family: str, folder: Path) -> str:
    try:
        return trial(family, folder)
    except BaseException as error:
        return f"fails: {type(error).__name__}: {error}"[:300]


def _page(results: dict[str, str]) -> str:
    tried = {family: result for family, result in results.items() if not result.startswith("none")}
    rest = [f"`{family}`" for family in results if family not in tried]
    exact = sum(result == "exact" for result in tried.values())
    head = HEAD.format(version=version("transformers"), exact=exact, refused=len(tried) - exact)
    rows = "".join(f"| `{family}` | {result} |\n" for family, result in tried.items())
    return head + rows + (TAIL.format(count=len(rest), names=", ".join(rest)) if rest else "")


if __name__ == "__main__":
    main()
