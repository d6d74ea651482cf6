"""The trained baselines on a tiny model, and what is kept of a drawn completion."""

import json
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from benchmarks.alignment.cache import Cache
from benchmarks.alignment.dpo import DPOTrainer, reference_rows, train_dpo
from benchmarks.alignment.pairs import MICRO_BATCH, Pair, PairTrainer, Schedule, batch_of, read_pairs
from benchmarks.alignment.prompts import Prompt
from benchmarks.alignment.reward_model import load_reward_model, scores, train_reward_model
from benchmarks.alignment.sampling import Drawing, Policy, Sampler
from models.engine import Engine, EngineSettings
from tests.tiny_models import make_adapter

SCHEDULE = Schedule(beta=0.5, learning_rate=1e-2, epochs=2, batch=8, targets=("q_proj", "v_proj"))


@pytest.fixture
def pairs(description, pairs_file):
    encoded = read_pairs(pairs_file, description)
    rows = reference_rows(description, encoded)
    return [Pair(pair, (row["chosen"], row["rejected"])) for pair, row in zip(encoded, rows, strict=True)]


def summed(model, response):
    ids = torch.tensor([response.ids])
    logprobs = model(ids).logits[0].float().log_softmax(-1)
    return sum(logprobs[t - 1, ids[0, t]] for t in range(response.response_start, ids.shape[1]))


@torch.no_grad()
def test_the_loss_of_dpo_is_that_of_its_paper(tiny_base, pairs, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    changed = make_adapter(tmp_path / "adapter", tiny_base)
    policy = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32), changed)
    with_reference = [
        replace(pair, reference=tuple(float(summed(base, one)) for one in (pair.encoded.chosen, pair.encoded.rejected)))
        for pair in pairs[:5]
    ]
    trainer = DPOTrainer.__new__(DPOTrainer)
    trainer.schedule = SCHEDULE

    loss = trainer.compute_loss(policy, batch_of(with_reference))

    margins = [
        (summed(policy, pair.encoded.chosen) - pair.reference[0])
        - (summed(policy, pair.encoded.rejected) - pair.reference[1])
        for pair in with_reference
    ]
    expected = -torch.nn.functional.logsigmoid(SCHEDULE.beta * torch.tensor(margins)).mean()
    assert float(loss) == pytest.approx(float(expected), abs=1e-5)


def test_dpo_learns_the_preference_and_a_killed_training_ends_in_the_same_weights(
    description, pairs, tmp_path, monkeypatch
):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    monkeypatch.setattr("benchmarks.alignment.pairs.CHECKPOINT_STEPS", 5)
    train_dpo(description, "base", pairs[:40], pairs[40:], SCHEDULE, whole)

    passes, training_step = [], PairTrainer.training_step
    in_a_step = SCHEDULE.batch // MICRO_BATCH

    def die_in_the_eighth_step(self, *arguments, **others):
        passes.append(1)
        if len(passes) == 8 * in_a_step:
            raise KeyboardInterrupt
        return training_step(self, *arguments, **others)

    monkeypatch.setattr(PairTrainer, "training_step", die_in_the_eighth_step)
    with pytest.raises(KeyboardInterrupt):
        train_dpo(description, "base", pairs[:40], pairs[40:], SCHEDULE, killed)
    train_dpo(description, "base", pairs[:40], pairs[40:], SCHEDULE, killed)

    assert len(passes) == (8 + 5) * in_a_step  # ten steps, of which the first five were kept
    held_out = json.loads((whole / "held_out.json").read_text())
    assert (held_out["pairs"], held_out["accuracy"]) == (8, 1.0)
    assert held_out["loss"] < 0.3
    one, other = (load_file(folder / "adapter_model.safetensors") for folder in (whole, killed))
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name])


def test_a_reward_model_learns_and_is_loaded_as_it_was_trained(description, pairs, tmp_path):
    train_reward_model(description, pairs[:40], pairs[40:], SCHEDULE, tmp_path)
    model = load_reward_model(description, tmp_path, torch.float32)

    chosen = scores(model, [pair.encoded.chosen.ids for pair in pairs[40:]])
    rejected = scores(model, [pair.encoded.rejected.ids for pair in pairs[40:]])

    assert all(one > other for one, other in zip(chosen, rejected, strict=True))


def test_the_kl_of_a_policy_with_other_weights_is_counted_from_the_base(tiny_base, tmp_path):
    adapter = make_adapter(tmp_path / "adapter", tiny_base, seed=4)
    sampler = Sampler(str(tiny_base), tmp_path, Cache(tmp_path / "cache"))
    sampler.engine = Engine(EngineSettings(home=tmp_path, dtype="float32"))
    prompts = [Prompt(3, "a", "hello"), Prompt(9, "b", "what?")]

    rows = sampler.sample("policy", Policy(str(adapter)), prompts, Drawing(new_tokens=6, seed=2, samples=2))

    base = AutoModelForCausalLM.from_pretrained(tiny_base)
    policy = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base), adapter)
    assert [(row["id"], row["sample"]) for row in rows] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    for row, prompt in zip(rows, [prompt for prompt in sampler.prompt_ids(prompts) for _ in range(2)], strict=True):
        ids = torch.tensor([prompt + row["token_ids"]])
        with torch.no_grad():
            change = policy(ids).logits.log_softmax(-1) - base(ids).logits.log_softmax(-1)
        places = range(len(prompt), ids.shape[1])
        assert row["log_ratio"] == pytest.approx(sum(float(change[0, t - 1, ids[0, t]]) for t in places), abs=1e-3)
        assert row["forward_tokens"] == len(prompt) + len(row["token_ids"])
