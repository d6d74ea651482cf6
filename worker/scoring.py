"""Jobs that score: token rewards of responses that exist already."""

from concurrent.futures import Future
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from db.outcomes import NewCompletion
from models.errors import UnsupportedModelError
from models.scoring import ResponseRow, ScoredResponse
from models.spec import GenerationSpec

if TYPE_CHECKING:
    from models.guided import GuidedModel

KIND = "score"
"""Of such a job; its spec is a GenerationSpec whose sampling is not used."""


@runtime_checkable
class Scorer(Protocol):
    """An engine that scores; one future per row, which may be cancelled."""

    def score(self, guided: "GuidedModel", row: ResponseRow) -> Future[ScoredResponse]: ...  # noqa: D102


def require_scorer(engine: object) -> Scorer:
    """The engine, if it scores.

    Raises:
        UnsupportedModelError: it does not.
    """
    if not isinstance(engine, Scorer):
        raise UnsupportedModelError("the engine of this worker only generates; it cannot score responses")
    return engine


def start_scoring(
    engine: object, guided: "GuidedModel", row: ResponseRow, spec: GenerationSpec
) -> Future[list[NewCompletion]]:
    """Give a row to an engine; the future has what to store.

    Raises:
        UnsupportedModelError: the engine does not score.
    """
    scorer = require_scorer(engine)
    has_base = all(spec.base != arm.ref for arm in spec.arms[:1])
    promised: Future[list[NewCompletion]] = Future()
    scoring = scorer.score(guided, row)

    def settle(done: Future[ScoredResponse]) -> None:
        if done.cancelled():
            promised.cancel()
        elif promised.set_running_or_notify_cancel():
            error = done.exception()
            if error is None:
                promised.set_result([_new_completion(row, done.result(), has_base)])
            else:
                promised.set_exception(error)

    promised.add_done_callback(lambda future: scoring.cancel() if future.cancelled() else None)
    scoring.add_done_callback(settle)
    return promised


def _new_completion(row: ResponseRow, scored: ScoredResponse, has_base: bool) -> NewCompletion:
    return NewCompletion(
        sample=0,
        text=row.response,
        finish_reason="stop" if row.is_closed else "length",
        tokens=scored.tokens,
        logprobs=None,
        base_logprobs=scored.base_logprobs if has_base else None,
        token_rewards=scored.token_rewards,
        prompt_tokens=scored.prompt_tokens,
    )
