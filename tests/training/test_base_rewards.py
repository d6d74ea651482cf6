"""The base's log-probabilities of the fused objective: right, computed once, and kept."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from models.training import base_rewards
from models.training.run import train_arm
from models.training.trainer import ArmTrainer
from models.training.watching import Listener
from tests.training.conftest import Diary


@pytest.fixture
def fused(with_settings):
    return with_settings(objective="fused", beta=2.0, margin=1.0, epochs=1)


class Counting(Listener):
    """Counts what of the base is computed."""

    def __init__(self):
        self.counts = []

    def on_count(self, what, done, total):
        if what == "log-probabilities of the base":
            self.counts.append((done, total))


def test_they_are_the_sums_of_the_base_over_the_response(fused, tiny_base, monkeypatch):
    seen = {}
    scores = ArmTrainer.scores

    def remember(trainer, model, batch):
        for ids, reward in zip(batch["input_ids"], batch["base_rewards"], strict=True):
            seen[tuple(ids.tolist())] = reward
        return scores(trainer, model, batch)

    monkeypatch.setattr(ArmTrainer, "scores", remember)

    trained = train_arm(fused, Listener())

    model = AutoModelForCausalLM.from_pretrained(tiny_base).eval()
    assert len(seen) > 30
    for pair in trained.data.train:
        ids = torch.tensor(pair.chosen.ids)
        logprobs = model(ids[None]).logits[0].log_softmax(-1)
        expected = sum(logprobs[t - 1, ids[t]] for t in range(pair.chosen.response_start, len(ids)))
        found = [reward for padded, reward in seen.items() if padded[: len(ids)] == tuple(ids.tolist())]
        assert found[0] == pytest.approx(expected.item(), abs=1e-3)


def test_they_are_computed_once_for_a_base_and_pairs(fused):
    first, second = Counting(), Counting()

    train_arm(fused, first)
    train_arm(fused, second)

    assert first.counts[-1] == (36, 36)
    assert second.counts == []


def test_other_pairs_or_another_base_have_another_file_and_a_broken_file_is_made_again(fused, tmp_path):
    pairs = train_arm(fused, Listener()).data.train
    one = base_rewards.cache_path(tmp_path, "base", "float32", pairs)

    assert one == base_rewards.cache_path(tmp_path, "base", "float32", list(pairs))
    assert one != base_rewards.cache_path(tmp_path, "other", "float32", pairs)
    assert one != base_rewards.cache_path(tmp_path, "base", "float32", pairs[1:])
    (kept,) = (tmp_path / "logprobs").glob("*.safetensors")
    kept.write_bytes(b"broken")
    again = Counting()
    train_arm(fused, again)
    assert again.counts[-1] == (36, 36)


def test_the_fused_objective_learns(fused):
    diary = Diary()

    trained = train_arm(fused, diary)

    assert trained.after.loss < trained.before.loss
    assert "fused log-probabilities per token" in (fused.output / "README.md").read_text()
