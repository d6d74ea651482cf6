"""One step's arithmetic: from the backbones' logits to drawn tokens, log-probabilities and rewards."""

from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
import torch
from torch import Tensor

from models.backbone import Backbone
from models.guidance import ArmLogits, guided_scores, logprobs_of
from models.guided import GuidedModel, LoadedModel
from models.native.kernels import Kernels, RowSampling
from models.sampling import draw, uniform
from models.scoring import ScoredStream
from models.sequence import Chunk, Stream
from models.sequence import Sequence as Sample


@dataclass(frozen=True)
class Drawn:
    """A token drawn for a sequence, and what is reported of it."""

    sequence: Sample
    token: int
    """−1 where the logits are not finite, so that there is no distribution to draw from."""
    logprob: float
    base_logprob: float
    rewards: list[float]
    """One per ARM."""


class StepLogits:
    """The logits of one step from which tokens are drawn, by stream."""

    def __init__(self) -> None:
        self.pending: list[Pending] = []
        self._logits: list[Tensor] = []
        self._places: dict[int, tuple[int, int]] = {}

    def run(self, backbone: Backbone, chunks: Sequence[Chunk]) -> None:
        """Run a backbone's chunks and keep the logits to draw from; those of scored streams are reduced at once."""
        logits, wanting = backbone.run(chunks)
        row, drawn = 0, list[int]()
        for chunk in wanting:
            if isinstance(chunk.stream, ScoredStream):
                self._score(chunk.stream, logits[row : row + chunk.wants])
            else:
                self._places[id(chunk.stream)] = (len(self._logits), len(drawn))
                drawn.append(row)
            row += chunk.wants
        self._logits.append(logits if len(drawn) == row else logits[drawn])

    def _score(self, stream: ScoredStream, logits: Tensor) -> None:
        """Keep the log-probabilities of the response's tokens that a scored stream's last tokens predict.

        Args:
            logits: after these tokens, [n, rows of the LM head].
        """
        places = stream.places(len(logits))
        tokens, real = stream.response[places], stream.model.real_logits(logits)

        def take(logprobs: Sequence[float]) -> None:
            stream.logprobs[places] = array("d", logprobs)

        if (kernels := stream.backbone.kernels) is not None:
            take(kernels.score(real, tokens))
        else:
            self.pending.append(Pending(logprobs_of(real, torch.tensor(tokens, device=real.device)), take))

    def of(self, model: LoadedModel, streams: Sequence[Stream]) -> Tensor:
        """The real logits of streams of one model, float32 [len(streams), size of its vocabulary]."""
        logits, rows = self._rows(streams)
        if rows != list(range(logits.shape[0])):
            logits = logits[rows]
        return model.real_logits(logits)

    def addresses_of(self, model: LoadedModel, streams: Sequence[Stream]) -> tuple[list[int], Tensor]:
        """Where in memory the real logits of streams of one model lie, and the float32 tensor that holds them."""
        logits, rows = self._rows(streams)
        real = model.real_logits(logits)
        return [real.data_ptr() + row * real.stride(0) * real.itemsize for row in rows], real

    def _rows(self, streams: Sequence[Stream]) -> tuple[Tensor, list[int]]:
        places = [self._places[id(stream)] for stream in streams]
        return self._logits[places[0][0]], [row for _, row in places]  # the streams of one model run on one backbone


@dataclass(frozen=True)
class Pending:
    """Numbers that are still on the device, and who takes them once they are here."""

    values: Tensor
    """Of any shape; whole numbers up to 2⁵³ are exact."""
    take: Callable[[list[float]], None]
    """Takes them row by row, one after the other."""


def fetch(pending: Sequence[Pending]) -> None:
    """Bring all numbers to the host in one copy, which is the only one of a step that waits for the device."""
    if not pending:
        return
    device = pending[0].values.device
    numbers = torch.cat([one.values.double().flatten().to(device) for one in pending]).tolist()
    first = 0
    for one in pending:
        end = first + one.values.numel()
        one.take(numbers[first:end])
        first = end


def draw_tokens(ready: Iterable[tuple[GuidedModel, Sample]], logits: StepLogits) -> list[Drawn]:
    """Draw the next token of every sequence that has its logits; the scores of the step are complete after it.

    Sequences with the same base and ARMs are computed together, whatever their weights, sampling and seeds.
    """
    groups: dict[tuple[LoadedModel, ...], list[tuple[GuidedModel, Sample]]] = {}
    for guided, sequence in ready:
        groups.setdefault(guided.models, []).append((guided, sequence))
    drawn: list[Drawn] = []
    pending = list(logits.pending)
    for group in groups.values():
        guided, sequences = group[0][0], [sequence for _, sequence in group]
        kernels = guided.base.backbone.kernels
        if kernels is not None:
            drawn += _draw_with_kernels(kernels, guided, sequences, logits)
        else:
            pending.append(_draw_with_torch(guided, sequences, logits, drawn))
    fetch(pending)
    return drawn


def _streams(sequences: Sequence[Sample], model: int) -> list[Stream]:
    return [sequence.streams[model] for sequence in sequences]


def _uniforms(sequences: Sequence[Sample]) -> list[float]:
    return [uniform(s.sampling.seed, s.row, s.sample, len(s.response)) for s in sequences]


def _drawn(sequences: Sequence[Sample], tokens: Sequence[int], logprobs: Sequence[Sequence[float]]) -> list[Drawn]:
    """Args: logprobs: for each sequence log π, log π_base, and each ARM's reward."""
    return [
        Drawn(sequence, token, logprob, base_logprob, rewards)
        for sequence, token, (logprob, base_logprob, *rewards) in zip(sequences, tokens, logprobs, strict=True)
    ]


def _draw_with_kernels(
    kernels: Kernels, guided: GuidedModel, sequences: Sequence[Sample], logits: StepLogits
) -> list[Drawn]:
    found = [logits.addresses_of(model, _streams(sequences, index)) for index, model in enumerate(guided.models)]
    weights = np.ones((len(sequences), len(guided.models)), np.float32)
    weights[:, 1:] = [sequence.weights for sequence in sequences]
    sampling = [
        RowSampling(s.sampling.top_k, s.sampling.temperature, s.sampling.top_p, s.sampling.min_p, number)
        for s, number in zip(sequences, _uniforms(sequences), strict=True)
    ]
    tokens, logprobs = kernels.draw(
        list(zip(*(addresses for addresses, _ in found), strict=True)),
        weights,
        [model.description.vocabulary.size for model in guided.models],
        guided.shared_size,
        guided.excluded_ids,
        sampling,
    )
    return _drawn(sequences, tokens, logprobs)


def _draw_with_torch(
    guided: GuidedModel, sequences: Sequence[Sample], logits: StepLogits, drawn: list[Drawn]
) -> Pending:
    """What is drawn is on the device at first; it is added to `drawn` as it comes to the host."""
    base = logits.of(guided.base, _streams(sequences, 0))
    everyone = torch.arange(len(sequences), device=base.device)
    arms = []
    for index, arm in enumerate(guided.arms):
        arm_logits = logits.of(arm, _streams(sequences, index + 1)).to(base.device)
        weights = base.new_tensor([sequence.weights[index] for sequence in sequences])
        arms.append(ArmLogits(everyone, arm_logits, weights))
    scores = guided_scores(base, arms, guided.shared_size, guided.excluded)
    tokens = draw(scores, [sequence.sampling for sequence in sequences], _uniforms(sequences))
    logprobs = [logprobs_of(one, tokens) for one in (scores, base, *(arm.logits for arm in arms))]
    reported = torch.stack([column.double() for column in (scores.amax(dim=1), tokens, *logprobs)], dim=1)

    def take(numbers: list[float]) -> None:
        width = reported.shape[1]
        rows = [numbers[first : first + width] for first in range(0, len(numbers), width)]
        drawn.extend(_drawn(sequences, [_token(row) for row in rows], [row[2:] for row in rows]))

    return Pending(reported, take)


def _token(row: Sequence[float]) -> int:
    """The token of a row with the maximum of its scores, the token, and log-probabilities; −1 where any is not finite.

    A model's log-probability is no number where one of its logits is none, or infinite, also at ids that are excluded.
    """
    return int(row[1]) if all(map(isfinite, row)) else -1
