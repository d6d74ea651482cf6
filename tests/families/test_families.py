"""A cut of docs/families.md: `make families` runs all."""

from pathlib import Path

import pytest

from tests.families.__main__ import PAGE
from tests.families.trial import trial
from tests.one_thread import one_thread  # noqa: F401

CUT = ["qwen2", "mixtral", "olmo2", "opt", "gemma2", "llama4_text", "falcon_h1", "stablelm"]


@pytest.mark.parametrize("family", CUT)
def test_a_family_is_what_the_table_says(tmp_path: Path, family: str) -> None:
    """Exact beside transformers' eager attention on a ragged batch, or refused at submit in these words."""
    result = trial(family, tmp_path)
    assert result == "exact" or result.startswith("refused: ")
    assert f"| `{family}` | {result} |" in PAGE.read_text()
