"""How many responses a minute are scored: prompts and responses of one size, by one ARM alone and beside its base.

    python -m benchmarks.scoring --base model.gguf

Beside it, generating as many tokens with the same models, which takes one step per token.
"""

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.ours import OurEngine, Request
from benchmarks.prompts import prompts
from models.references import resolve
from models.scoring import ResponseRow


def rows_per_minute(engine: OurEngine, rows: list[dict[str, str]]) -> float:
    """Score rows of text, and generate nothing."""
    parsed = [ResponseRow.parse(row, index, engine.spec) for index, row in enumerate(rows)]
    started = time.perf_counter()
    futures = [engine.engine.score(engine.guided, row) for row in parsed]
    while engine.engine.step():
        pass
    taken = time.perf_counter() - started
    for future in futures:
        future.result(timeout=0)
    return 60 * len(rows) / taken


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="a model's folder or .gguf file")
    parser.add_argument("--arm", help="an ARM; else the base again, which then runs once")
    parser.add_argument("--home", type=Path, default=Path(".genarm"), help="where a .gguf file is converted to")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--response-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = str(resolve(options.base, options.home).folder)
        engine = OurEngine(Path(folder), base, [options.arm or base])
        draw, measured = random.Random(0), []
        for _ in range(options.repeats):
            beginnings = prompts(engine.tokenizer, options.rows, options.prompt_tokens, draw)
            responses = prompts(engine.tokenizer, options.rows, options.response_tokens, draw)
            rows = [
                {"prompt": prompt, "response": response} for prompt, response in zip(beginnings, responses, strict=True)
            ]
            measured.append(rows_per_minute(engine, rows))
        generated = [Request(prompt, options.response_tokens) for prompt in beginnings[:64]]
        generating = 60 * len(generated) / engine.seconds(generated)
    shape = f"{options.prompt_tokens} + {options.response_tokens} tokens"
    print(f"scoring: {statistics.median(measured):.0f} rows a minute ({shape}, {options.rows} rows)")
    print(f"generating: {generating:.0f} rows a minute")


if __name__ == "__main__":
    main()
