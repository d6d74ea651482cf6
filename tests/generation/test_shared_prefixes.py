"""Tokens that several sequences begin with are run once per model, and outputs stay what they were."""

from pathlib import Path
from typing import Any

import pytest

from models.backbone import Backbone
from tests.tiny_models import make_adapter, make_model, spec_of


@pytest.fixture
def tokens_run(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of every forward pass."""
    run, tokens = Backbone.run, []

    def counting(backbone: Backbone, chunks: Any) -> Any:
        tokens.append(sum(chunk.count for chunk in chunks))
        return run(backbone, chunks)

    monkeypatch.setattr(Backbone, "run", counting)
    return tokens


@pytest.mark.parametrize("use_kernels", [True, False], ids=["kernels", "torch"])
def test_samples_run_their_prompt_once(generate: Any, tmp_path: Path, tokens_run: list[int]) -> None:
    spec = spec_of(make_model(tmp_path / "base"), samples=8, temperature=1.0, max_new_tokens=3, ignore_eos=True)
    samples = generate({**spec, "raw": True}, [{"prompt": "a" * 129}])[0]
    assert tokens_run == [129 + 7, 8, 8]  # eight blocks of 16 are shared, the last token is run by each
    assert len({tuple(sample.tokens) for sample in samples}) == 8


def test_prompts_of_a_job_run_their_common_beginning_once_per_model(
    generate: Any, tmp_path: Path, tokens_run: list[int]
) -> None:
    base = make_model(tmp_path / "base")
    arms = (
        ("own", make_adapter(tmp_path / "adapter", base), 1.0),
        ("other", make_model(tmp_path / "other", seed=3), 0.5),
    )
    spec = {**spec_of(base, *arms, temperature=1.0, max_new_tokens=2, ignore_eos=True), "raw": True}
    rows = [{"prompt": "s" * 64 + letter * 9} for letter in "abcd"]
    together = generate(spec, rows)
    assert sum(tokens_run) == 3 * (64 + 4 * 9 + 4)
    for index, row in enumerate(together):
        assert generate(spec, rows, only=[index]) == [row]
