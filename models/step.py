"""One step's arithmetic: from the backbones' logits to drawn tokens, log-probabilities and rewards."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.backbone import Backbone
from models.guidance import ArmLogits, guided_scores, logprobs_of
from models.guided import GuidedModel, LoadedModel
from models.sampling import draw, uniform
from models.sequence import Chunk, Stream
from models.sequence import Sequence as Sample


@dataclass(frozen=True)
class Drawn:
    """A token drawn for a sequence, and what is reported of it."""

    sequence: Sample
    token: int
    logprob: float
    base_logprob: float
    rewards: list[float]
    """One per ARM."""


class StepLogits:
    """The logits of one step, by stream."""

    def __init__(self) -> None:
        self._logits: list[Tensor] = []
        self._places: dict[int, tuple[int, int]] = {}

    def run(self, backbone: Backbone, chunks: Sequence[Chunk]) -> None:
        """Run a backbone's chunks and keep the logits that they want."""
        logits, streams = backbone.run(chunks)
        for row, stream in enumerate(streams):
            self._places[id(stream)] = (len(self._logits), row)
        self._logits.append(logits)

    def of(self, model: LoadedModel, streams: Sequence[Stream]) -> Tensor:
        """The real logits of streams of one model, float32 [len(streams), size of its vocabulary]."""
        places = [self._places[id(stream)] for stream in streams]
        logits = self._logits[places[0][0]]  # the streams of one model run on one backbone
        rows = [row for _, row in places]
        if rows != list(range(logits.shape[0])):
            logits = logits[rows]
        return model.real_logits(logits)


def draw_tokens(ready: Iterable[tuple[GuidedModel, Sample]], logits: StepLogits) -> list[Drawn]:
    """Draw the next token of every sequence that has its logits.

    Sequences with the same base and ARMs are computed together, whatever their weights, sampling and seeds.
    """
    groups: dict[tuple[LoadedModel, ...], list[tuple[GuidedModel, Sample]]] = {}
    for guided, sequence in ready:
        groups.setdefault(guided.models, []).append((guided, sequence))
    return [drawn for group in groups.values() for drawn in _draw_group(group[0][0], [s for _, s in group], logits)]


def _draw_group(guided: GuidedModel, sequences: Sequence[Sample], logits: StepLogits) -> list[Drawn]:
    base = logits.of(guided.base, [sequence.streams[0] for sequence in sequences])
    everyone = torch.arange(len(sequences), device=base.device)
    arms = []
    for index, arm in enumerate(guided.arms):
        arm_logits = logits.of(arm, [sequence.streams[index + 1] for sequence in sequences]).to(base.device)
        weights = base.new_tensor([sequence.weights[index] for sequence in sequences])
        arms.append(ArmLogits(everyone, arm_logits, weights))
    scores = guided_scores(base, arms, *guided.shared)
    uniforms = [uniform(s.sampling.seed, s.row, s.sample, len(s.response)) for s in sequences]
    tokens = draw(scores, [sequence.sampling for sequence in sequences], uniforms)
    columns = [tokens.double(), logprobs_of(scores, tokens), logprobs_of(base, tokens)]
    columns += [logprobs_of(arm.logits, tokens) for arm in arms]
    reported = torch.stack([column.double() for column in columns], dim=1).tolist()  # the step's one copy to the host
    return [
        Drawn(sequence, int(token), logprob, base_logprob, rewards)
        for sequence, (token, logprob, base_logprob, *rewards) in zip(sequences, reported, strict=True)
    ]
