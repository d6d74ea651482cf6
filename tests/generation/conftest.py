"""An engine over tiny models, and the plain loop to compare it with."""

import gc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

from models.completion import Completion
from models.engine import Engine, EngineSettings
from models.guided import GuidedModel
from models.scoring import ResponseRow, ScoredResponse
from models.spec import GenerationSpec, PromptRow
from tests.generation.plain import PlainArm, PlainOutput, plain_generate, plain_score
from tests.generation.tape import Tape
from tests.one_thread import one_thread  # noqa: F401


@pytest.fixture
def use_kernels() -> bool:
    """Our own kernels; modules that also test PyTorch's operations make it a parameter."""
    return True


@pytest.fixture
def static_decode() -> bool:
    """Decodes in static shapes; modules that test them make it a parameter."""
    return False


@pytest.fixture
def taped(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tape]]:
    """Let static steps replay what they did first, as a CUDA graph does; the list has a tape for each shape."""
    tapes: list[Tape] = []

    def capture(step: Any) -> Tape:
        tapes.append(Tape(step))
        return tapes[-1]

    monkeypatch.setattr("models.backbone.capture_for", lambda device: capture)
    gc.freeze()  # tapes collect garbage: what there was before is none
    yield tapes
    gc.unfreeze()


@pytest.fixture
def make_engine(tmp_path: Path, use_kernels: bool, static_decode: bool) -> Callable[..., Engine]:
    def make(**settings: Any) -> Engine:
        defaults: dict[str, Any] = {"home": tmp_path, "device": "cpu", "dtype": "float32", "kv_cache_bytes": 16 * 2**20}
        defaults |= {"use_kernels": use_kernels, "static_decode": static_decode}
        return Engine(EngineSettings(**{**defaults, **settings}))

    return make


@pytest.fixture
def generate(make_engine: Callable[..., Engine]) -> Callable[..., list[list[Completion]]]:
    """Run rows (as users write them) through an engine, step by step in this thread; `only` some of them, by index."""

    def run(
        spec: dict[str, Any], rows: Sequence[dict[str, Any]], only: Sequence[int] | None = None, **settings: Any
    ) -> list[list[Completion]]:
        engine = make_engine(**settings)
        parsed = GenerationSpec.parse(spec)
        guided = engine.load(parsed)
        indexes = range(len(rows)) if only is None else only
        futures = [engine.submit(guided, PromptRow.parse(rows[index], index, parsed)) for index in indexes]
        while engine.step():
            pass
        return [future.result(timeout=0) for future in futures]

    return run


@pytest.fixture
def score(make_engine: Callable[..., Engine]) -> Callable[..., list[ScoredResponse]]:
    """Score rows (as users write them) with an engine, step by step in this thread."""

    def run(spec: dict[str, Any], rows: Sequence[dict[str, Any]], **settings: Any) -> list[ScoredResponse]:
        engine = make_engine(**settings)
        parsed = GenerationSpec.parse(spec)
        guided = engine.load(parsed)
        futures = [engine.score(guided, ResponseRow.parse(row, index, parsed)) for index, row in enumerate(rows)]
        while engine.step():
            pass
        return [future.result(timeout=0) for future in futures]

    return run


@pytest.fixture
def assert_scores_equal_plain(
    make_engine: Callable[..., Engine], score: Callable[..., list[ScoredResponse]], model_of: Callable[..., Any]
) -> Callable[..., list[ScoredResponse]]:
    """Score rows, and compare every number with a forward pass of each model over each row alone."""

    def compare(spec: dict[str, Any], rows: Sequence[dict[str, Any]], **settings: Any) -> list[ScoredResponse]:
        found = score(spec, rows, **settings)
        parsed = GenerationSpec.parse(spec)
        guided = make_engine(**settings).load(parsed)
        for index, (row, scored) in enumerate(zip(rows, found, strict=True)):
            prompt = PromptRow.parse(row, index, parsed)
            series = [scored.base_logprobs, *scored.token_rewards.values()]
            for model, logprobs in zip(guided.models, series, strict=True):
                ref, backbone = model.description.source.folder, model.description.backbone.folder
                ids = model.renderer.prompt_ids(prompt, system=parsed.system, raw=parsed.raw)
                expected = plain_score(
                    model_of(str(ref), str(backbone)), ids, scored.tokens, model.description.vocabulary.size
                )
                assert logprobs == pytest.approx(expected, abs=1e-4)
        return found

    return compare


@pytest.fixture
def model_of() -> Callable[..., Any]:
    """A model as transformers runs it; an adapter with its backbone."""
    loaded: dict[str, Any] = {}

    def load(ref: str, backbone: str | None = None) -> Any:
        if ref not in loaded:
            if (Path(ref) / "adapter_config.json").exists():
                backbone_model = AutoModelForCausalLM.from_pretrained(
                    backbone, attn_implementation="eager", dtype="float32"
                )
                loaded[ref] = PeftModel.from_pretrained(backbone_model, ref).eval()
            else:
                loaded[ref] = AutoModelForCausalLM.from_pretrained(
                    ref, attn_implementation="eager", dtype="float32"
                ).eval()
        return loaded[ref]

    return load


@pytest.fixture
def plain(model_of: Callable[..., Any]) -> Callable[..., PlainOutput]:
    """The plain loop over the models of a spec, for one sample of one row."""

    def run(guided: GuidedModel, row: PromptRow, sample: int = 0) -> PlainOutput:
        spec = guided.spec
        prompts = [m.renderer.prompt_ids(row, system=spec.system, raw=spec.raw) for m in guided.models]
        sizes = [model.description.vocabulary.size for model in guided.models]
        backbones = [str(model.description.backbone.folder) for model in guided.models]
        arms = [
            PlainArm(model_of(arm.ref, backbone), prompt, row.weights[arm.name], size)
            for arm, prompt, size, backbone in zip(spec.arms, prompts[1:], sizes[1:], backbones[1:], strict=True)
        ]
        base = model_of(str(guided.base.description.source.folder))
        return plain_generate(base, prompts[0], sizes[0], arms, row.sampling, row=row.index, sample=sample)

    return run


@pytest.fixture
def assert_equals_plain(make_engine: Callable[..., Engine], plain: Callable[..., PlainOutput]) -> Callable[..., None]:
    """Generate rows in one batch, and compare every number with the plain loop's."""

    def compare(spec: dict[str, Any], rows: Sequence[dict[str, Any]], **settings: Any) -> None:
        engine = make_engine(**settings)
        parsed = GenerationSpec.parse(spec)
        guided = engine.load(parsed)
        prompts = [PromptRow.parse(row, index, parsed) for index, row in enumerate(rows)]
        futures = [engine.submit(guided, prompt) for prompt in prompts]
        while engine.step():
            pass
        for prompt, future in zip(prompts, futures, strict=True):
            for completion in future.result(timeout=0):
                expected = plain(guided, prompt, completion.sample)
                assert completion.tokens == expected.tokens
                assert completion.logprobs == pytest.approx(expected.logprobs, abs=1e-4)
                assert completion.base_logprobs == pytest.approx(expected.base_logprobs, abs=1e-4)
                rewards = list(completion.token_rewards.values())
                assert len(rewards) == len(expected.rewards)
                for series, expected_series in zip(rewards, expected.rewards, strict=True):
                    assert series == pytest.approx(expected_series, abs=1e-4)

    return compare
