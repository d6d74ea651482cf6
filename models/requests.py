"""Rows in the engine, and the futures that their callers wait for."""

from concurrent.futures import Future
from dataclasses import dataclass, field

from models.completion import Completion, FinishReason
from models.guided import GuidedModel
from models.scoring import ScoredResponse, ScoredSequence
from models.sequence import Sequence
from models.stopping import StopMatcher


@dataclass(eq=False)
class EngineRequest:
    """One row to generate: its samples, and the future that its caller waits for."""

    guided: GuidedModel
    future: Future[list[Completion]]
    stop: StopMatcher
    sequences: list[Sequence] = field(default_factory=list)
    finished: list[Completion] = field(default_factory=list)

    def completion_if_finished(self, sequence: Sequence) -> Completion | None:
        """The completion of one of the samples once its last token ends it."""
        reason: FinishReason | None = None
        text: str | None = None
        base = self.guided.base
        ended = sequence.response[-1] in base.description.eos_ids and not sequence.sampling.ignore_eos
        if not ended:
            text = self.stop.text_before_stop(sequence.response)
        if ended or text is not None:
            reason = "stop"
        elif len(sequence.response) >= sequence.sampling.max_new_tokens:
            reason = "length"
        if reason is None:
            return None
        return Completion(
            sample=sequence.sample,
            text=text if text is not None else base.renderer.text(sequence.response),
            finish_reason=reason,
            tokens=sequence.response,
            logprobs=sequence.logprobs,
            base_logprobs=sequence.base_logprobs,
            token_rewards={
                arm.name: series for arm, series in zip(self.guided.spec.arms, sequence.token_rewards, strict=True)
            },
            prompt_tokens=sequence.streams[0].prompt_tokens,
        )

    def resolve(self) -> None:
        """Give the caller the completions of all samples, unless it has gone."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(sorted(self.finished, key=lambda completion: completion.sample))


@dataclass(eq=False)
class ScoreRequest:
    """One response to score."""

    guided: GuidedModel
    future: Future[ScoredResponse]
    sequences: list[ScoredSequence] = field(default_factory=list)
    """One."""


AnyRequest = EngineRequest | ScoreRequest
