"""The script of the weak ARM, on a tiny model: its layers, its tuning, and two adapters that become one."""

import importlib.util
import json
from itertools import combinations
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.tiny_models import make_adapter, make_model

SCRIPT = Path(__file__).parents[2] / "examples" / "arms" / "positive-small" / "small.py"
TOKENS = torch.tensor([[5, 9, 40, 17, 3, 88]])


@pytest.fixture
def small(monkeypatch):
    found = importlib.util.spec_from_file_location("small", SCRIPT)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    monkeypatch.setattr(module, "KEPT", (0, 2))
    monkeypatch.setattr(module, "RANK", 2)
    return module


@pytest.fixture
def base(tmp_path):
    return make_model(tmp_path / "base")


@pytest.fixture
def completions(tmp_path):
    path = tmp_path / "completions.jsonl"
    rows = [{"prompt": f"Say {word}", "tokens": [40 + index, 50, 60, 2]} for index, word in enumerate("abcdefgh")]
    path.write_text("".join(json.dumps(row | {"error": None}) + "\n" for row in rows))
    return path


def logits(folder):
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(TOKENS).logits


def test_the_layers_that_stay_are_the_nearest_to_the_base(small, base, completions, capsys):
    small.choose(base, completions)
    *_, chosen = capsys.readouterr().out.splitlines()

    distances = {}
    for kept in combinations(range(3), 2):
        small.KEPT = kept
        small.cut(base, base.parent / "cut")
        model, teacher = small.load(base.parent / "cut"), small.load(base)
        batch, wanted = next(small.batches(small.AutoTokenizer.from_pretrained(base), completions, 3, 0))
        with torch.no_grad():
            given, wished = (small.distributions(one, batch, wanted) for one in (model, teacher))
        distances[kept] = float((wished.exp() * (wished - given)).sum())
    assert chosen == f"KEPT = {min(distances, key=distances.get)}"


def test_tuning_brings_the_small_model_nearer_to_the_base(small, base, completions, tmp_path, capsys):
    small.cut(base, tmp_path / "cut")
    small.tune(tmp_path / "cut", base, completions, tmp_path / "tuned", epochs=40, most_steps=None)
    steps = [float(line.split("KL ")[1].split()[0]) for line in capsys.readouterr().out.splitlines()]
    assert steps[-1] < 0.8 * steps[0]


def test_the_two_adapters_joined_are_the_arm_on_the_tuned_model(small, base, tmp_path):
    small.cut(base, tmp_path / "cut")
    targets = list(small.TARGETS)
    make_adapter(tmp_path / "tuned", tmp_path / "cut", seed=1, targets=targets)
    small.merge(tmp_path / "cut", tmp_path / "tuned", tmp_path / "small")
    make_adapter(tmp_path / "arm", tmp_path / "small", seed=2, targets=targets)
    small.join(tmp_path / "cut", tmp_path / "tuned", tmp_path / "arm", tmp_path / "shipped")

    small.merge(tmp_path / "small", tmp_path / "arm", tmp_path / "wanted")
    small.merge(tmp_path / "cut", tmp_path / "shipped", tmp_path / "found")

    assert sorted(path.name for path in (tmp_path / "shipped").glob("adapter*")) == [
        "adapter_config.json", "adapter_model.safetensors",
    ]  # fmt: skip
    wanted, found = logits(tmp_path / "wanted"), logits(tmp_path / "found")
    unlike = (logits(tmp_path / "small") - wanted).abs().max()
    assert (found - wanted).abs().max() < 0.05 * unlike  # weights are bfloat16
