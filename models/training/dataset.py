"""The pairs of a training run: read from their files, encoded, and split into training and held-out pairs."""

import hashlib
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from models.training.encoding import EncodedPair, PairEncoder
from models.training.preferences import BadPair, PreferencesError, read_preferences


@dataclass(frozen=True)
class PairFile:
    """One file of pairs as a model sees it."""

    path: Path
    sha256: str
    pairs: Sequence[EncodedPair]
    bad: Sequence[BadPair]
    """Pairs that are left out, and why."""

    @cached_property
    def problems(self) -> dict[str, int]:
        """How many pairs are left out, by problem."""
        return dict(Counter(str(one.problem) for one in self.bad))

    def __str__(self) -> str:
        left_out = ", ".join(f"{count} {problem}" for problem, count in self.problems.items())
        return f"{self.path.name}: {len(self.pairs)} pairs" + (f", left out: {left_out}" if left_out else "")


@dataclass(frozen=True)
class Data:
    """The pairs of a training run."""

    files: Sequence[PairFile]
    train: Sequence[EncodedPair]
    held_out: Sequence[EncodedPair]


def read_data(path: Path, eval_path: Path | None, encoder: PairEncoder, eval_fraction: float, seed: int) -> Data:
    """Read and encode pairs; hold out those of `eval_path`, or else `eval_fraction` of the prompts of `path`.

    Raises:
        PreferencesError: a file cannot be read, or holds no usable pair, or nothing can be held out.
    """
    file = read_file(path, encoder)
    if eval_path is not None:
        eval_file = read_file(eval_path, encoder)
        return Data([file, eval_file], file.pairs, eval_file.pairs)
    train, held_out = split(file.pairs, eval_fraction, seed)
    return Data([file], train, held_out)


def read_file(path: Path, encoder: PairEncoder) -> PairFile:
    """Read and encode the pairs of one file.

    Raises:
        PreferencesError: the file cannot be read, or holds no usable pair.
    """
    preferences = read_preferences(path)
    encoded = [encoder.encode(pair) for pair in preferences.pairs]
    pairs = [one for one in encoded if isinstance(one, EncodedPair)]
    bad = [*preferences.bad, *(one for one in encoded if isinstance(one, BadPair))]
    if not pairs:
        first = f" ({bad[0]})" if bad else ""
        raise PreferencesError(f"{path}: no usable preference pair{first}")
    return PairFile(path, hashlib.sha256(path.read_bytes()).hexdigest(), pairs, sorted(bad, key=lambda one: one.line))


def split(pairs: Sequence[EncodedPair], fraction: float, seed: int) -> tuple[list[EncodedPair], list[EncodedPair]]:
    """Hold out about `fraction` of the prompts: (training pairs, held-out pairs).

    Pairs that share a prompt stay on one side, so that no held-out prompt was trained on. A fraction above zero holds
    out at least one prompt, and leaves at least one for training.

    Raises:
        PreferencesError: there is only one prompt, so that nothing can be held out.
    """
    if fraction == 0.0:
        return list(pairs), []
    prompts = sorted({pair.preference.prompt for pair in pairs})
    if len(prompts) < 2:
        raise PreferencesError(
            "all pairs share one prompt, so that none can be held out; give a file of evaluation pairs"
        )
    random.Random(seed).shuffle(prompts)
    count = min(max(1, round(len(prompts) * fraction)), len(prompts) - 1)
    held = set(prompts[:count])
    train = [pair for pair in pairs if pair.preference.prompt not in held]
    return train, [pair for pair in pairs if pair.preference.prompt in held]
