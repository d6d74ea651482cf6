"""Faults that must cost no more than they have to: rows of NaN, captures that fail, too little memory."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import load_file, save_file

from benchmarks.gpu.report import Note
from benchmarks.gpu.tiny import Started, differences, rows
from models.backbone import Backbone
from models.errors import RowError
from models.graph_capture import capture_for
from models.loading import describe
from models.sequence import Chunk
from tests.tiny_models import make_model, spec_of

BROKEN_LETTER = "z"
MOST_AT_ONCE = 3


def nan_row(folder: Path, device: str, is_quick: bool, note: Note) -> None:
    """A row whose logits are NaN fails with `not_finite`, and the rows beside it are what they are without it."""
    base = make_model(folder / "base")
    file = base / "model.safetensors"
    weights = load_file(file)
    letter = describe(str(base), folder).tokenizer.get_vocab()[BROKEN_LETTER]
    weights["model.embed_tokens.weight"][letter] = torch.nan
    save_file(weights, file, metadata={"format": "pt"})
    started = Started(folder, device, spec_of(base, temperature=1.0, ignore_eos=True))
    written = rows(4 if is_quick else 9)
    expected = started.completions(written)
    outcomes = started.outcomes([{"prompt": BROKEN_LETTER}, *written], [len(written), *range(len(written))])
    outcome = outcomes.pop(0)
    is_told = isinstance(outcome, RowError) and outcome.code == "not_finite"
    note("a row of NaN", is_told, str(outcome)[:80], {})
    beside = [completion for one in outcomes if isinstance(one, list) for completion in one]
    if len(beside) == len(expected):
        total, differing, _ = differences(beside, expected)
        note("the rows beside it", differing == 0, f"{total} tokens, {differing} differ", {"differing": differing})
    else:
        note("the rows beside it", False, f"{len(expected) - len(beside)} failed", {})


def failed_capture(folder: Path, device: str, is_quick: bool, note: Note) -> None:
    """A step that cannot be captured leaves the process as it was, and the next one is captured."""
    place, numbers = torch.device(device), torch.ones(4, device=device)
    is_cuda = place.type == "cuda"
    before = torch.cuda.current_stream(place) if is_cuda else None
    try:
        capture_for(place)(lambda: numbers * float(numbers.sum()))
        told = "nothing"
    except RuntimeError as error:
        told = str(error).splitlines()[0]
    note("a step that waits", not is_cuda or "captur" in told, f"raised {told[:80]}", {})
    if is_cuda:
        note("the current stream", torch.cuda.current_stream(place) == before, "is the one before", {})
        torch.cuda.empty_cache()
        note("empty_cache", True, "works", {})
    replay = capture_for(place)(lambda: numbers * 2)
    numbers += 1
    note("the next capture", replay().tolist() == [4.0] * 4, "is replayed with what its memory holds by then", {})


def out_of_memory(folder: Path, device: str, is_quick: bool, note: Note) -> None:
    """Too little memory for a step: fewer run at once, and the tokens are the same."""
    spec = spec_of(make_model(folder / "base"), temperature=1.0, ignore_eos=True)
    written, run, failed = rows(5 if is_quick else 9), Backbone.run, []
    expected = Started(folder, device, spec, static_decode=False).completions(written)

    def starved(backbone: Backbone, chunks: Sequence[Chunk]) -> Any:
        if len(chunks) > MOST_AT_ONCE:
            failed.append(len(chunks))
            torch.empty(2**60, dtype=torch.int8, device=backbone.device)
        return run(backbone, chunks)

    with patch.object(Backbone, "run", starved):
        found = Started(folder, device, spec).completions(written)
    total, differing, _ = differences(found, expected)
    text = f"{len(failed)} steps failed; {total} tokens, {differing} differ"
    note("too little memory", bool(failed) and differing == 0, text, {"failed": len(failed), "differing": differing})
