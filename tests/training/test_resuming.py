"""A training that is stopped or killed goes on to the same weights, bit for bit; another training is refused."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from models.training import checkpoint
from models.training.checkpoint import CheckpointError
from models.training.run import TrainingStopped, train_arm
from models.training.watching import Listener
from tests.training.conftest import Diary, assert_same, learnable, source_of, trained_weights


@pytest.fixture
def uninterrupted(tmp_path):
    """Train a run in a folder of its own without a stop: what it gave, and the weights."""

    def go(run):
        whole = replace(run, output=tmp_path / "whole", resume=False)
        return train_arm(whole, Listener()), trained_weights(whole.output)

    return go


def stop_after(run, steps):
    with pytest.raises(TrainingStopped, match=r"stopped and saved after step \d+ of \d+; .* --resume goes on"):
        train_arm(run, Diary(stop_after=steps))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"objective": "fused", "beta": 2.0},
        {"tuning": "full", "learning_rate": 1e-3},
        {"tuning": "full", "learning_rate": 1e-3, "dtype": "bfloat16"},
        {"dtype": "bfloat16", "gradient_checkpointing": True},
    ],
    ids=["lora", "fused", "full", "full in bfloat16", "bfloat16 and gradient checkpointing"],
)
def test_stopped_twice_and_resumed_gives_the_weights_of_an_uninterrupted_run(with_settings, uninterrupted, settings):
    run = replace(with_settings(**settings), resume=True)
    whole, weights = uninterrupted(run)

    stop_after(run, 2)
    stop_after(run, 5)  # in the second epoch of four steps each
    diary = Diary()
    resumed = train_arm(run, diary)

    assert_same(trained_weights(run.output), weights)
    assert resumed.after == whole.after
    assert diary.notes == ["going on after step 7"]
    assert [step.step for step in diary.steps] == list(range(8, 13))
    assert not (run.output / checkpoint.FOLDER).exists()


def test_optimiser_schedule_and_random_numbers_are_those_of_the_stop(run):
    stop_after(run, 3)

    found = checkpoint.newest(run.output)
    assert found.step == 3
    assert {name.partition(".")[2] for name in found.tensors("optimizer")} == {"step", "exp_avg", "exp_avg_sq"}
    assert found.facts["schedule"]["last_epoch"] == 3
    assert found.tensors("rng")["torch"].numel() > 600


def test_asked_before_the_first_step_is_done_it_saves_where_it_began(run, uninterrupted):
    run = replace(run, resume=True, settings=run.settings.model_copy(update={"eval_fraction": 0.0}))
    _, weights = uninterrupted(run)

    stop_after(run, 0)
    assert checkpoint.newest(run.output).step == 0
    train_arm(run, Listener())

    assert_same(trained_weights(run.output), weights)


DOOMED = """
import os, signal, sys
from pathlib import Path
from models.training import checkpoint
from models.training.run import TrainingRun, train_arm
from models.training.settings import TrainingSettings
from tests.training.conftest import SETTINGS, Diary, learnable, source_of

base, output, home, fault = sys.argv[1:]
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
class Doomed(Diary):
    def on_step(self, step):
        if fault == "between checkpoints" and step.step == 8:
            die()
        if fault == "while a checkpoint is written" and step.step == 6:
            checkpoint._sync = die
settings = TrainingSettings.parse(SETTINGS | {"eval_fraction": 0.2})
run = TrainingRun(base, source_of(learnable(36)), Path(output), settings, Path(home), save_every=3)
train_arm(run, Doomed())
"""


@pytest.mark.parametrize(
    ("fault", "saved"), [("between checkpoints", 6), ("while a checkpoint is written", 3)], ids=str
)
def test_killed_and_resumed_gives_the_weights_of_an_uninterrupted_run(run, uninterrupted, fault, saved):
    whole, weights = uninterrupted(run)
    command = [sys.executable, "-c", DOOMED, run.base, str(run.output), str(run.home), fault]

    died = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(Path.cwd())}, capture_output=True, text=True, check=False
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert not (run.output / "adapter_model.safetensors").exists()
    assert checkpoint.newest(run.output).step == saved
    resumed = train_arm(replace(run, resume=True), Listener())

    assert_same(trained_weights(run.output), weights)
    assert resumed.evaluations == whole.evaluations


def test_a_checkpoint_is_not_overwritten_without_being_asked(run):
    stop_after(run, 2)

    with pytest.raises(CheckpointError, match=r"stopped after step 2; go on with --resume, or delete .*checkpoint"):
        train_arm(run, Listener())
    assert checkpoint.newest(run.output).step == 2


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"learning_rate": 0.02}, r"learning_rate was 0\.01 and is 0\.02"),
        ({"epochs": 4, "seed": 6}, "epochs was 3 and is 4; seed was 5 and is 6"),
        ({"targets": ("q_proj",)}, "targets was q_proj k_proj v_proj and is q_proj"),
        ({"max_tokens": 45}, "the training pairs are not what it began with"),
    ],
)
def test_other_settings_are_refused_in_words(run, with_settings, settings, named):
    stop_after(run, 2)

    with pytest.raises(CheckpointError, match=f"cannot be resumed.*{named}"):
        train_arm(replace(with_settings(**settings), resume=True), Listener())
    assert checkpoint.newest(run.output).step == 2


def test_other_pairs_and_another_base_are_refused_in_words(run, tmp_path, tiny_base):
    stop_after(run, 2)
    pairs = learnable(36)
    pairs[0]["chosen"] += "!"
    other = tmp_path / "other"
    other.mkdir()
    for path in tiny_base.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-3] ^= 1
    (other / "model.safetensors").write_bytes(weights)

    with pytest.raises(CheckpointError, match=r"the (training|held-out) pairs are not what it began with"):
        train_arm(replace(run, pairs=source_of(pairs), resume=True), Listener())
    with pytest.raises(CheckpointError, match="the base is not what it began with"):
        train_arm(replace(run, base=str(other), resume=True), Listener())


def test_a_broken_checkpoint_is_named(run):
    stop_after(run, 2)
    (checkpoint.newest(run.output).folder / "weights.safetensors").write_bytes(b"\0" * 20)

    with pytest.raises(CheckpointError, match=r"weights\.safetensors: cannot be read"):
        train_arm(replace(run, resume=True), Listener())


def test_resume_without_a_checkpoint_begins_and_of_a_finished_training_does_nothing(run):
    run = replace(run, resume=True)
    first = train_arm(run, Listener())
    written = (run.output / "adapter_model.safetensors").stat().st_mtime_ns

    diary = Diary()
    again = train_arm(run, diary)

    assert diary.notes == ["this training is finished already"]
    assert diary.steps == []
    assert (again.after, again.steps) == (first.after, first.steps)
    assert (run.output / "adapter_model.safetensors").stat().st_mtime_ns == written


def test_only_the_newest_checkpoint_is_kept(run):
    run = replace(run, save_every=2)

    stop_after(run, 7)

    assert [path.name for path in (run.output / checkpoint.FOLDER).iterdir()] == ["step-7"]


EARLY = {"eval_every": 1, "patience": 2, "learning_rate": 0.2, "warmup": 0.0, "eval_fraction": 0.3}
"""So high a learning rate that the loss goes up again."""


def test_early_stopping_keeps_the_best_weights(with_settings, uninterrupted):
    run = with_settings(**EARLY)
    diary = Diary()
    trained = train_arm(run, diary)

    losses = {step: one.loss for step, one in trained.evaluations.items() if step > 0}
    assert trained.steps == min(losses, key=losses.get)
    assert diary.evaluations == [0, *losses]
    assert max(losses) == trained.steps + 2 < 12
    stopped_there = replace(run, settings=run.settings.model_copy(update={"patience": 0}), save_every=1)
    with pytest.raises(TrainingStopped):
        train_arm(replace(stopped_there, output=run.home / "plain"), Diary(stop_after=trained.steps))
    best = checkpoint.newest(run.home / "plain").tensors("weights")
    saved = trained_weights(run.output)
    assert_same(saved, {name.replace(".default.", "."): weight for name, weight in best.items()})


def test_early_stopping_resumes_to_the_same_end(with_settings, uninterrupted):
    run = replace(with_settings(**EARLY), resume=True)
    whole, weights = uninterrupted(run)

    stop_after(run, whole.steps + 1)  # the best weights are behind, and one evaluation was worse
    resumed = train_arm(run, Listener())

    assert resumed.steps == whole.steps
    assert resumed.evaluations == whole.evaluations
    assert_same(trained_weights(run.output), weights)
