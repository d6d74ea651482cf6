"""Scores are those of a plain forward pass, whatever they run beside, and those that generation stored."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.backbone import Backbone
from models.errors import RowError
from models.scoring import ResponseRow
from models.spec import GenerationSpec, PromptRow
from models.step import StepLogits
from tests.tiny_models import FAMILIES, OTHER_TEMPLATE, make_adapter, make_model, make_reciter, pad_head, spec_of

BYTES_PER_BLOCK = 16 * 3 * 2 * 2 * 8 * 4
"""Of a tiny Llama's KV cache: 16 tokens, 3 layers, keys and values, 2 heads of 8 float32 numbers."""

ROWS: list[dict[str, Any]] = [
    {"prompt": "Hi", "response": "Hello, how are you?"},
    {"prompt": "A much longer prompt, which takes more than one chunk and more than one block.", "response": "x"},
    {"messages": [{"role": "user", "content": "One"}, {"role": "assistant", "content": "two"}], "response": "three"},
    {"prompt": "naïve 漢字", "response": "a long one: " + "naïve 漢字. " * 4},
    {"prompt": "nothing", "response": ""},
    {"prompt": "cut", "response": "in the mid", "finish_reason": "length"},
    {"prompt": "Hi", "response": "Hello again"},
]


@pytest.fixture(params=[True, False], ids=["kernels", "torch"])
def use_kernels(request: Any) -> bool:
    use: bool = request.param
    return use


@pytest.fixture
def close(use_kernels: bool) -> Callable[[list[float]], Any]:
    """Numbers that come out of another batch: the same bits with our kernels."""
    return list if use_kernels else lambda series: pytest.approx(series, abs=1e-4)


@pytest.fixture
def spec(tmp_path: Path) -> dict[str, Any]:
    """A base, a LoRA ARM on its weights, and an ARM with a template of its own."""
    base = make_model(tmp_path / "base", seed=1)
    rider = make_adapter(tmp_path / "rider", base, seed=2)
    other = make_model(tmp_path / "other", seed=3, template=OTHER_TEMPLATE)
    return spec_of(base, ("rider", rider, 1.0), ("other", other, 0.5))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixed_batch_equals_plain_forward_passes(tmp_path: Path, assert_scores_equal_plain: Any, family: str) -> None:
    base = make_model(tmp_path / "base", family, seed=1)
    arm = make_model(tmp_path / "arm", "llama", seed=2, template=OTHER_TEMPLATE)
    scored = assert_scores_equal_plain(spec_of(base, ("arm", arm, 1.0)), ROWS, prefill_tokens=24, max_running=4)
    assert [one.tokens[-1] == 2 for one in scored] == [True] * 5 + [False, True]
    assert [len(one.tokens) for one in scored[:2]] == [20, 2]


def test_adapters_and_padding_rows_equal_plain_forward_passes(
    tmp_path: Path, assert_scores_equal_plain: Any, spec: dict[str, Any]
) -> None:
    padded = pad_head(tmp_path / "padded", Path(spec["base"]), 7)
    assert_scores_equal_plain(spec, ROWS)
    assert_scores_equal_plain(spec_of(padded, ("other", Path(spec["arms"][1]["ref"]), 1.0)), ROWS[:3])


@pytest.mark.parametrize(
    "limits",
    [
        {"prefill_tokens": 1},
        {"prefill_tokens": 7, "max_running": 2},
        {"kv_cache_bytes": 22 * BYTES_PER_BLOCK, "prefill_tokens": 40},
    ],
    ids=str,
)
def test_limits_change_nothing(score: Any, spec: dict[str, Any], limits: dict[str, Any], close: Any) -> None:
    expected = [score(spec, [row])[0] for row in ROWS]
    for one, other in zip(expected, score(spec, ROWS, **limits), strict=True):
        assert one.tokens == other.tokens
        assert other.base_logprobs == close(one.base_logprobs)
        assert other.token_rewards == {name: close(series) for name, series in one.token_rewards.items()}


def test_what_was_generated_has_the_stored_rewards_when_it_is_scored_again(
    generate: Any, score: Any, spec: dict[str, Any], close: Any
) -> None:
    rows = [{key: value for key, value in row.items() if key in ("prompt", "messages")} for row in ROWS]
    spec["sampling"] |= {"temperature": 1.0, "seed": 4, "max_new_tokens": 30}
    stored = [completions[0] for completions in generate(spec, rows)]
    again = [
        {**row, "response": one.text, "tokens": one.tokens, "finish_reason": one.finish_reason}
        for row, one in zip(rows, stored, strict=True)
    ]
    assert {one.finish_reason for one in stored} == {"stop", "length"}
    for one, scored in zip(stored, score(spec, again), strict=True):
        assert scored.tokens == one.tokens
        assert scored.base_logprobs == close(one.base_logprobs)
        assert scored.token_rewards == {name: close(series) for name, series in one.token_rewards.items()}


def test_preemption_changes_nothing(make_engine: Any, score: Any, tmp_path: Path, close: Any) -> None:
    """Beside a sample that grows, a scored response gives way and is computed again."""
    base = make_model(tmp_path / "base", seed=1)
    spec = spec_of(base, ("other", make_model(tmp_path / "other", seed=2), 0.8), max_new_tokens=90, ignore_eos=True)
    row = {"prompt": "given", "response": "word " * 24}
    (expected,) = score(spec, [row])
    parsed = GenerationSpec.parse(spec)
    engine = make_engine(kv_cache_bytes=15 * BYTES_PER_BLOCK, prefill_tokens=2)
    guided = engine.load(parsed)
    engine.submit(guided, PromptRow.parse({"prompt": "grow"}, 0, parsed))
    for _ in range(30):
        engine.step()
    future = engine.score(guided, ResponseRow.parse(row, 1, parsed))
    while engine.step():
        pass
    assert engine.stats().preemptions > 0
    assert future.result(timeout=0).token_rewards["other"] == close(expected.token_rewards["other"])
    assert guided.base.backbone.pool.free == guided.base.backbone.pool.count


def test_tokens_count_only_where_they_spell_the_response(score: Any, tmp_path: Path) -> None:
    base = make_reciter(tmp_path / "reciter", [b"ab", b"c"])
    ab = 259  # after the special tokens and the bytes
    spelt = {"prompt": "p", "response": "ab", "tokens": [ab]}
    rows = [spelt, {**spelt, "response": "ac"}, {**spelt, "tokens": [ab, 10**9]}, {**spelt, "tokens": []}]
    rows.append({"prompt": "p", "response": "j\ufffdp", "tokens": [76, 191, 82]})  # as a database keeps NUL
    letters = score(spec_of(base), [{"prompt": "p", "response": "ab"}])[0].tokens
    found = [one.tokens for one in score(spec_of(base), rows)]
    assert found[0] == [ab]
    assert found[2] == found[3] == letters
    assert found[4] == [76, 191, 82]
    assert len(letters) == 3
    assert found[1][0] == letters[0]


def test_models_that_see_the_same_run_once(score: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a job without a base, where its first ARM has the base's part."""
    run, tokens = Backbone.run, []

    def counting(backbone: Backbone, chunks: Any) -> Any:
        tokens.append(sum(chunk.count for chunk in chunks))
        return run(backbone, chunks)

    monkeypatch.setattr(Backbone, "run", counting)
    arm = make_model(tmp_path / "arm")
    rows = [{"prompt": "s" * 64, "response": letter * 9} for letter in "abc"]
    found = score({**spec_of(arm, ("arm", arm, 1.0)), "raw": True}, rows)
    assert tokens == [64 + 9 + 2 * (16 + 9)]  # the prompt's last block is run by each: its last logits are wanted
    for one in found:
        assert one.token_rewards == {"arm": one.base_logprobs}


def test_no_logits_of_a_scored_step_are_kept(score: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, kept = StepLogits.run, list[int]()

    def looking(logits: StepLogits, backbone: Backbone, chunks: Any) -> None:
        run(logits, backbone, chunks)
        kept.extend(len(one) for one in logits._logits)

    monkeypatch.setattr(StepLogits, "run", looking)
    score(spec_of(make_model(tmp_path / "base")), ROWS[:2])
    assert set(kept) == {0}


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ({"prompt": "p"}, "invalid_response"),
        ({"prompt": "p", "response": ["no text"]}, "invalid_response"),
        ({"prompt": "p", "response": "half \ud800"}, "invalid_response"),
        ({"prompt": "p", "response": "", "finish_reason": "length"}, "invalid_response"),
        ({"prompt": "p", "response": "extra", "tokens": [259]}, "invalid_response"),
        ({"response": "r"}, "invalid_prompt"),
        ({"prompt": "p", "response": "long " * 60}, "prompt_too_long"),
        ({"prompt": "p", "response": "long " * 40}, "prompt_too_long"),
    ],
)
def test_a_row_that_cannot_be_scored_says_why(score: Any, tmp_path: Path, row: dict[str, Any], code: str) -> None:
    base = make_model(tmp_path / "base", extra=["extra"])
    spec = spec_of(base, ("arm", make_model(tmp_path / "arm"), 1.0))
    with pytest.raises(RowError) as refused:
        score(spec, [row], kv_cache_bytes=12 * BYTES_PER_BLOCK)
    assert refused.value.code == code


def test_weights_that_are_no_numbers_fail_the_row(score: Any, tmp_path: Path) -> None:
    base, broken = make_model(tmp_path / "base"), make_model(tmp_path / "broken", seed=1)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"].fill_(torch.nan)
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RowError, match="no finite logits"):
        score(spec_of(base, ("broken", broken, 1.0)), ROWS[:1])


def test_a_cancelled_row_leaves_and_its_neighbours_stay(make_engine: Any, spec: dict[str, Any]) -> None:
    parsed = GenerationSpec.parse(spec)
    engine = make_engine(prefill_tokens=4)
    guided = engine.load(parsed)
    first, second = (engine.score(guided, ResponseRow.parse(row, 0, parsed)) for row in ROWS[:2])
    engine.step()
    assert first.cancel()
    while engine.step():
        pass
    assert len(second.result(timeout=0).tokens) == 2
    assert guided.base.backbone.pool.free == guided.base.backbone.pool.count
