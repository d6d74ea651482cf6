"""A whole run on a tiny model: it learns, PEFT loads what it wrote, and a seed means the same weights."""

import os
import stat
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from models.errors import ModelNotFoundError, SpecError, UnsupportedModelError
from models.loading import describe
from models.training.objective import sequence_rewards
from models.training.run import train_arm
from models.training.settings import TrainingSettings
from models.training.trainer import SortedBatches, reward_metrics
from models.training.watching import Listener
from models.training.weights import load_frozen
from tests.tiny_models import make_adapter, make_model
from tests.training.conftest import Diary, assert_same, learnable, source_of, trained_weights


def test_a_run_learns_the_preference_and_generalises_to_held_out_prompts(run):
    diary = Diary()
    trained = train_arm(run, diary)
    steps = diary.steps

    assert [step.step for step in steps] == list(range(1, trained.steps + 1))
    assert steps[-1].steps == trained.steps == 12  # 29 pairs in batches of 8, three times
    assert steps[-1].loss < 0.5 * steps[0].loss
    assert trained.after.pairs == 7
    assert trained.after.loss < 0.5 * trained.before.loss
    assert trained.after.accuracy == 1.0
    assert trained.after.margin > trained.before.margin
    assert trained.after.margin == pytest.approx(trained.after.chosen_reward - trained.after.rejected_reward, rel=1e-6)


def test_peft_loads_the_adapter_and_gives_the_same_rewards(run, tiny_base):
    trained = train_arm(run, Listener())
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base), run.output).eval()
    description = describe(str(tiny_base), run.home)

    margins = []
    for pair in trained.data.held_out:
        rewards = []
        for response in (pair.chosen, pair.rejected):
            ids = torch.tensor(response.ids)
            logprobs = model(ids[None]).logits[0, :, : description.vocabulary.size].log_softmax(-1)
            rewards.append(sum(logprobs[t - 1, ids[t]] for t in range(response.response_start, len(ids))))
        margins.append((rewards[0] - rewards[1]).item())

    assert sum(margins) / len(margins) == pytest.approx(trained.after.margin, abs=1e-3)


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_whoever_may_read_new_files_may_read_the_weights(with_settings, tuning):
    run = with_settings(epochs=1, tuning=tuning)
    before = os.umask(0o027)
    try:
        train_arm(run, Listener())
    finally:
        os.umask(before)
    files = [path for path in run.output.rglob("*") if path.is_file()]
    assert any(path.suffix == ".safetensors" for path in files)
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o640}


def test_the_same_run_gives_the_same_weights_and_another_seed_gives_others(run, tmp_path):
    settings = run.settings.model_copy(update={"epochs": 1})
    one, again, other = tmp_path / "one", tmp_path / "again", tmp_path / "other"

    train_arm(replace(run, output=one, settings=settings), Listener())
    train_arm(replace(run, output=again, settings=settings), Listener())
    train_arm(replace(run, output=other, settings=settings.model_copy(update={"seed": 6})), Listener())

    assert_same(trained_weights(one), trained_weights(again))
    assert not all(torch.equal(weight, trained_weights(other)[name]) for name, weight in trained_weights(one).items())


def test_accumulated_micro_batches_give_the_step_of_the_whole_batch(run, tmp_path):
    pairs = source_of(learnable(13))  # the last batch has five pairs: micro-batches of two, two and one
    whole = run.settings.model_copy(update={"batch": 8, "micro_batch": 8, "eval_fraction": 0.0, "epochs": 1})
    parts = whole.model_copy(update={"micro_batch": 2})

    train_arm(replace(run, pairs=pairs, output=tmp_path / "whole", settings=whole), Listener())
    train_arm(replace(run, pairs=pairs, output=tmp_path / "parts", settings=parts), Listener())

    for name, weight in trained_weights(tmp_path / "whole").items():
        torch.testing.assert_close(weight, trained_weights(tmp_path / "parts")[name], atol=2e-4, rtol=1e-3)


def test_the_weights_of_the_base_stay_frozen_and_the_adapter_is_float32(run, with_settings):
    train_arm(with_settings(dtype="bfloat16", epochs=1), Listener())

    saved = trained_weights(run.output)
    assert all("lora_" in name for name in saved)
    assert {weight.dtype for weight in saved.values()} == {torch.float32}


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_bfloat16_computes_about_what_float32_does_over_float32_masters(with_settings, tuning):
    exact, coarse = (
        train_arm(replace(one, output=one.home / one.settings.dtype), Listener())
        for one in (with_settings(tuning=tuning, dtype=dtype, learning_rate=1e-3) for dtype in ("float32", "bfloat16"))
    )

    assert coarse.before.chosen_reward == pytest.approx(exact.before.chosen_reward, rel=0.02)
    assert coarse.before.chosen_reward != exact.before.chosen_reward
    assert coarse.after.loss == pytest.approx(exact.after.loss, abs=0.05)
    assert {weight.dtype for weight in trained_weights(coarse.output).values()} == {torch.float32}


def test_dropout_of_the_base_is_off(tmp_path):
    folder = make_model(tmp_path / "gpt2", "gpt2")
    base = describe(str(folder), tmp_path)
    base.config.resid_pdrop = base.config.attn_pdrop = base.config.embd_pdrop = 0.5
    ids = torch.arange(12)[None] + 3

    model = load_frozen(base, TrainingSettings(dtype="float32")).train()

    arguments = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "response_mask": ids > 6}
    rewards = [sequence_rewards(model, **arguments, vocabulary_size=200) for _ in range(2)]
    assert torch.equal(*rewards)
    assert base.config.resid_pdrop == 0.5  # the caller's configuration is its own


def test_an_evaluation_file_is_used_whole_and_nothing_is_held_out_of_the_other(with_settings):
    eval_pairs = source_of([*learnable(5), {"prompt": "p", "chosen": "x", "rejected": "x"}], "eval.jsonl")

    trained = train_arm(replace(with_settings(epochs=1), eval_pairs=eval_pairs), Listener())

    assert (len(trained.data.train), trained.after.pairs) == (36, 5)
    assert trained.data.held_out_prompts_seen == 5
    assert [str(pairs) for pairs in trained.data.sets] == [
        "pairs.jsonl: 36 pairs",
        "eval.jsonl: 5 pairs, left out: 1 identical",
    ]


def test_the_card_says_what_was_done_and_the_adapter_names_its_base(run):
    run = replace(run, base_name="org/Base", about="Prefers yes over no.", command="genarm arm train pairs.jsonl")

    trained = train_arm(run, Listener())

    card = (run.output / "README.md").read_text()
    for fact in (
        "base_model: org/Base",
        "# arm",
        "Prefers yes over no.",
        "genarm arm train pairs.jsonl",
        "pairs.jsonl: 36 pairs",
        "29 pairs for training, 7 held out",
        "Responses have 11.9 tokens in the mean where they are chosen, 9.4 where they are rejected.",
        "| seed | 5 |",
        f"| accuracy | {trained.before.accuracy:.4g} | {trained.after.accuracy:.4g} |",
    ):
        assert fact in card
    assert '"base_model_name_or_path": "org/Base"' in (run.output / "adapter_config.json").read_text()
    assert sorted(path.name for path in run.output.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "training.json",
    ]


def test_what_cannot_be_trained_is_refused_in_one_line(run, tmp_path, tiny_base):
    adapter = make_adapter(tmp_path / "adapter", tiny_base)
    targets = run.settings.model_copy(update={"targets": ("q_proj", "wq")})

    with pytest.raises(ModelNotFoundError, match="no such file or folder"):
        train_arm(replace(run, base="./nowhere"), Listener())
    with pytest.raises(UnsupportedModelError, match="is an adapter"):
        train_arm(replace(run, base=str(adapter)), Listener())
    with pytest.raises(SpecError, match=r"no linear layer named wq; it has .*v_proj"):
        train_arm(replace(run, settings=targets), Listener())
    assert not run.output.exists()


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"beta": 0}, "beta"),
        ({"batch": 12, "micro_batch": 8}, "a batch of 12 pairs cannot be made of micro-batches of 8"),
        ({"learning_rte": 1}, "learning_rte"),
        ({"patience": 2}, "--eval-every"),
        ({"margin": 1}, "--objective fused"),
    ],
)
def test_wrong_settings_are_named(fields, named):
    with pytest.raises(SpecError, match=named):
        TrainingSettings.parse(fields)


def test_defaults_go_with_choices():
    plain, fused, full = (TrainingSettings.parse(one) for one in ({}, {"objective": "fused"}, {"tuning": "full"}))

    assert (plain.beta, plain.margin, plain.learning_rate) == (0.05, 0.0, 5e-4)
    assert (fused.beta, fused.margin) == (2.0, 1.0)
    assert full.learning_rate == 5e-7
    assert TrainingSettings.parse({"objective": "fused", "beta": 3}).beta == 3


def test_a_batch_that_processes_cannot_share_is_refused():
    assert TrainingSettings(batch=32, micro_batch=4).passes_per_step(processes=2) == 4
    with pytest.raises(SpecError, match="multiple of 24"):
        TrainingSettings(batch=32, micro_batch=8).passes_per_step(processes=3)


def test_sorted_batches_hold_random_pairs_in_order_of_length():
    lengths = [n * 37 % 101 for n in range(100)]
    sampler = SortedBatches(lengths, batch=10, seed=1)

    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)

    assert sorted(first) == sorted(second) == list(range(100))
    batches = [[lengths[index] for index in first[start : start + 10]] for start in range(0, 100, 10)]
    assert all(batch == sorted(batch) for batch in batches)
    assert all(max(batch) - min(batch) > 30 for batch in batches)  # a batch is not one bucket of lengths
    assert first != second
    assert first == list(SortedBatches(lengths, batch=10, seed=1))


def test_reward_metrics_by_hand():
    rewards = torch.tensor([[-1.0, -3.0], [-4.0, -2.0], [-1.0, -2.0]])
    scores = torch.cat([rewards / 2, rewards], dim=1).numpy()

    metrics = reward_metrics(scores, TrainingSettings(beta=0.5))

    assert metrics["accuracy"] == pytest.approx(2 / 3)
    assert metrics["margin"] == pytest.approx(1 / 6)
    assert (metrics["chosen_reward"], metrics["rejected_reward"]) == pytest.approx((-2.0, -7 / 3))
