"""Rows whose logits are not finite fail alone with `not_finite`, and no index is made that a GPU would die of."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.backbone import Backbone
from models.engine import Engine
from models.errors import RowError
from models.guidance import ArmLogits, guided_scores
from models.sampling import BLOCK, draw, inverse_cdf
from models.scoring import ResponseRow
from models.sequence import Chunk
from models.spec import GenerationSpec, PromptRow, SamplingParams
from tests.tiny_models import make_adapter, make_model, spec_of

NAN, INF = torch.nan, torch.inf
SAMPLING: list[dict[str, Any]] = [
    {}, {"temperature": 0.0}, {"temperature": 0.3}, {"top_k": 5}, {"top_p": 0.7}, {"min_p": 0.1},
    {"top_k": 9, "top_p": 0.9, "min_p": 0.01, "temperature": 2.0},
]  # fmt: skip
BROKEN: dict[str, Callable[[Tensor], Any]] = {
    "one NaN": lambda row: row[7:8].fill_(NAN),
    "the last NaN": lambda row: row[-1:].fill_(NAN),
    "all NaN": lambda row: row.fill_(NAN),
    "one +inf": lambda row: row[7:8].fill_(INF),
    "all +inf": lambda row: row.fill_(INF),
    "all -inf": lambda row: row.fill_(-INF),
    "NaN and -inf": lambda row: row.fill_(-INF)[3:4].fill_(NAN),
}
MODELS = ("base", "own", "other")
CASES = [
    ("base", "one NaN"),
    ("own", "all NaN"),
    ("other", "the last NaN"),
    ("other", "one +inf"),
    ("base", "all -inf"),
]


@pytest.fixture(params=["kernels", "torch", "static"])
def use_kernels(request: pytest.FixtureRequest) -> bool:
    return str(request.param) == "kernels"


@pytest.fixture
def static_decode(request: pytest.FixtureRequest, use_kernels: bool) -> bool:
    return bool(request.node.callspec.params["use_kernels"] == "static")


@pytest.fixture
def spec(tmp_path: Path) -> dict[str, Any]:
    """An ARM that rides on the base, and one of its own."""
    base = make_model(tmp_path / "base", seed=1)
    own, other = make_adapter(tmp_path / "own", base, seed=2), make_model(tmp_path / "other", seed=3)
    return spec_of(base, ("own", own, 0.7), ("other", other, -0.5), temperature=1.0, ignore_eos=True)


@contextmanager
def breaking(guided: Any, model: str, first: dict[int, int], how: Callable[[Tensor], Any]) -> Iterator[None]:
    """Break the logits of one model for some rows.

    Args:
        first: from which token on, by how many tokens the row's prompt has.
    """
    run, one = Backbone.run, guided.models[MODELS.index(model)]

    def run_and_break(backbone: Backbone, chunks: Sequence[Chunk]) -> Any:
        logits, wanting = run(backbone, chunks)
        logits, row = logits.clone(), 0
        for chunk in wanting:
            stream = chunk.stream
            is_its = (stream.backbone, stream.adapter) == (one.backbone, one.adapter)
            if is_its and stream.cached >= stream.prompt_tokens + first.get(stream.prompt_tokens, 999):
                how(logits[row + chunk.wants - 1])
            row += chunk.wants
        return logits, wanting

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Backbone, "run", run_and_break)
        yield


def finish(engine: Engine, futures: list[Future[Any]]) -> list[Any]:
    while engine.step():
        pass
    return [future.exception(timeout=0) or future.result(timeout=0) for future in futures]


def is_not_finite(outcome: Any) -> bool:
    return isinstance(outcome, RowError) and outcome.code == "not_finite"


@pytest.mark.parametrize(("model", "how"), CASES)
def test_a_row_without_finite_logits_fails_alone_on_every_path(
    make_engine: Any, spec: dict[str, Any], model: str, how: str
) -> None:
    """With every kind of sampling, at its first token or later; the rows beside it are drawn as without it."""
    parsed = GenerationSpec.parse(spec)
    engine = make_engine()
    guided = engine.load(parsed)
    rows = [{"prompt": "p" * (1 + index), "sampling": fields} for index, fields in enumerate(SAMPLING)]
    prompts = [PromptRow.parse(row, index, parsed) for index, row in enumerate(rows)]
    lengths = [len(guided.base.renderer.prompt_ids(prompt, system=None, raw=False)) for prompt in prompts]
    expected = finish(engine, [engine.submit(guided, prompt) for prompt in prompts])
    for broken in (range(0, len(rows), 2), range(1, len(rows), 2)):
        with breaking(guided, model, {lengths[index]: index // 2 for index in broken}, BROKEN[how]):
            found = finish(engine, [engine.submit(guided, prompt) for prompt in prompts])
        for index, (outcome, plain) in enumerate(zip(found, expected, strict=True)):
            assert is_not_finite(outcome) if index in broken else outcome[0].tokens == plain[0].tokens


@pytest.mark.parametrize(("model", "how"), CASES)
def test_a_response_without_finite_logits_fails_alone(
    make_engine: Any, spec: dict[str, Any], model: str, how: str
) -> None:
    parsed = GenerationSpec.parse(spec)
    engine = make_engine()
    guided = engine.load(parsed)
    rows = [{"prompt": "p" * (1 + index), "response": "some text"} for index in range(3)]
    responses = [ResponseRow.parse(row, index, parsed) for index, row in enumerate(rows)]
    length = len(guided.base.renderer.prompt_ids(responses[1].prompt, system=None, raw=False))
    expected = finish(engine, [engine.score(guided, response) for response in responses])
    with breaking(guided, model, {length: 0}, BROKEN[how]):
        found = finish(engine, [engine.score(guided, response) for response in responses])
    assert is_not_finite(found[1])
    assert [found[index].tokens for index in (0, 2)] == [expected[index].tokens for index in (0, 2)]


@pytest.mark.parametrize("broken", ["base", "arm"])
def test_weights_that_are_no_numbers_fail_the_row(make_engine: Any, tmp_path: Path, broken: str) -> None:
    folders = {name: make_model(tmp_path / name, seed=seed) for seed, name in enumerate(("base", "arm"))}
    file = folders[broken] / "model.safetensors"
    weights = load_file(file)
    weights["model.norm.weight"].fill_(torch.nan)
    save_file(weights, file, metadata={"format": "pt"})
    spec = GenerationSpec.parse(spec_of(folders["base"], ("arm", folders["arm"], 1.0)))
    engine = make_engine()
    (outcome,) = finish(engine, [engine.submit(engine.load(spec), PromptRow.parse({"prompt": "p"}, 0, spec))])
    assert is_not_finite(outcome)
    assert "no finite logits" in str(outcome)


def test_an_arms_nan_stays_one_where_ids_are_excluded() -> None:
    """And its −inf: an ARM may forbid a token."""
    logits = torch.tensor([[0.0, NAN, -INF, 0.0], [0.0, 1.0, -INF, 0.0]])
    arm = ArmLogits(torch.arange(2), logits, torch.ones(2))
    scores = guided_scores(torch.zeros(2, 4), [arm], 4, torch.tensor([3]))
    assert scores[0, 1].isnan()
    assert scores[1].tolist() == [0, 1, -INF, -INF]


@pytest.mark.parametrize("vocab", [1, 5, BLOCK, BLOCK + 1, 3 * BLOCK - 1])
@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("fields", SAMPLING, ids=str)
def test_no_index_leaves_the_vocabulary_whatever_the_numbers(vocab: int, how: str, fields: dict[str, Any]) -> None:
    scores = torch.randn(40, vocab, generator=torch.Generator().manual_seed(0))
    sampling, uniforms = [SamplingParams(**fields)] * 40, [index / 40 for index in range(40)]
    expected = draw(scores, sampling, uniforms)
    broken = scores.clone()
    for row in broken[::2]:
        BROKEN[how](row)
    found = draw(broken, sampling, uniforms)
    assert found[1::2].tolist() == expected[1::2].tolist()
    assert 0 <= int(found.min()) <= int(found.max()) < vocab


@pytest.mark.parametrize("vocab", [1, 5, BLOCK + 1])
def test_weights_that_are_no_numbers_give_a_token(vocab: int) -> None:
    for row in (torch.full((vocab,), NAN), torch.full((vocab,), INF), torch.zeros(vocab)):
        tokens = inverse_cdf(row.repeat(3, 1), torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64))
        assert 0 <= int(tokens.min()) <= int(tokens.max()) < vocab
