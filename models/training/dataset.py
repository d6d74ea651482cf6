"""The pairs of a training run: checked, encoded, and split into training and held-out pairs."""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from models.training.encoding import EncodedPair, PairEncoder
from models.training.preferences import BadPair, PreferencesError, parse_preference


@dataclass(frozen=True)
class PairSource:
    """Where pairs come from: rows that somebody else reads."""

    name: str
    """A file's name, or a dataset's."""
    rows: Iterable[tuple[str, Mapping[str, Any]]]
    """Where each row stands ("line 7"), and the row."""
    sha256: str | None = None
    """Of the file; None: that of the rows is computed."""


@dataclass(frozen=True)
class PairSet:
    """The pairs of one source as a model sees them."""

    name: str
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
        return f"{self.name}: {len(self.pairs)} pairs" + (f", left out: {left_out}" if left_out else "")


@dataclass(frozen=True)
class Data:
    """The pairs of a training run."""

    sets: Sequence[PairSet]
    train: Sequence[EncodedPair]
    held_out: Sequence[EncodedPair]

    @cached_property
    def held_out_prompts_seen(self) -> int:
        """Held-out pairs whose prompt is one of training, so that they flatter the figures."""
        trained = {pair.preference.prompt_key for pair in self.train}
        return sum(pair.preference.prompt_key in trained for pair in self.held_out)

    @cached_property
    def mean_tokens(self) -> tuple[float, float]:
        """Mean response tokens of the chosen and of the rejected responses that are trained on.

        Pairs that differ by length teach length.
        """
        chosen, rejected = (
            sum(response.response_tokens for response in side) / len(self.train)
            for side in ([pair.chosen for pair in self.train], [pair.rejected for pair in self.train])
        )
        return chosen, rejected


def read_data(
    source: PairSource,
    eval_source: PairSource | None,
    encoder: PairEncoder,
    eval_fraction: float,
    seed: int,
    on_row: Callable[[int], None] = lambda count: None,
) -> Data:
    """Read and encode pairs; hold out those of `eval_source`, or else `eval_fraction` of the prompts of `source`.

    Args:
        on_row: called with the number of rows that were read of a source.

    Raises:
        PreferencesError: a source holds no usable pair, or nothing can be held out.
    """
    pairs = read_pairs(source, encoder, on_row)
    if eval_source is not None:
        eval_pairs = read_pairs(eval_source, encoder, on_row)
        return Data([pairs, eval_pairs], pairs.pairs, eval_pairs.pairs)
    train, held_out = split(pairs.pairs, eval_fraction, seed)
    return Data([pairs], train, held_out)


def read_pairs(source: PairSource, encoder: PairEncoder, on_row: Callable[[int], None] = lambda count: None) -> PairSet:
    """Check and encode the pairs of one source.

    Raises:
        PreferencesError: it holds no usable pair.
    """
    pairs: list[EncodedPair] = []
    bad: list[BadPair] = []
    digest = hashlib.sha256()
    for number, (place, row) in enumerate(source.rows, start=1):
        if source.sha256 is None:
            digest.update(json.dumps(row, sort_keys=True).encode())
        preference = parse_preference(place, row)
        pair = preference if isinstance(preference, BadPair) else encoder.encode(preference)
        if isinstance(pair, BadPair):
            bad.append(pair)
        else:
            pairs.append(pair)
        on_row(number)
    if not pairs:
        first = f" ({bad[0]})" if bad else ""
        raise PreferencesError(f"{source.name}: no usable preference pair{first}")
    return PairSet(source.name, source.sha256 or digest.hexdigest(), pairs, bad)


def split(pairs: Sequence[EncodedPair], fraction: float, seed: int) -> tuple[list[EncodedPair], list[EncodedPair]]:
    """Hold out about `fraction` of the prompts: (training pairs, held-out pairs).

    Pairs that share a prompt stay on one side, so that no held-out prompt was trained on. A fraction above zero holds
    out at least one prompt, and leaves at least one for training.

    Raises:
        PreferencesError: there is only one prompt, so that nothing can be held out.
    """
    if fraction == 0.0:
        return list(pairs), []
    prompts = sorted({pair.preference.prompt_key for pair in pairs})
    if len(prompts) < 2:
        raise PreferencesError(
            "all pairs share one prompt, so that none can be held out; give evaluation pairs of their own (--eval)"
        )
    random.Random(seed).shuffle(prompts)
    count = min(max(1, round(len(prompts) * fraction)), len(prompts) - 1)
    held = set(prompts[:count])
    train = [pair for pair in pairs if pair.preference.prompt_key not in held]
    return train, [pair for pair in pairs if pair.preference.prompt_key in held]
