"""Steps that are kept, best of n, and adapters added up in weight space."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from benchmarks.alignment.adapters import combine
from benchmarks.alignment.best_of_n import best_of, kl_of_best
from benchmarks.alignment.cache import Cache
from tests.tiny_models import make_adapter, make_model


def test_a_step_that_was_done_is_read_and_one_with_other_settings_is_run(tmp_path):
    runs = []

    def make():
        runs.append(1)
        return [{"text": "ä"}]

    for _ in range(2):
        assert Cache(tmp_path).rows("step", {"seed": 1}, make) == [{"text": "ä"}]
    assert len(runs) == 1

    Cache(tmp_path).rows("step", {"seed": 2}, make)
    assert len(runs) == 2


def test_a_step_is_told_from_others_by_all_of_its_name_and_settings(tmp_path):
    asked = [("w0.05", 1), ("w0.1", 1), ("w0.1", 2)]

    for name, seed in asked:
        Cache(tmp_path).rows(name, seed, lambda row={"name": name, "seed": seed}: [row])

    for name, seed in asked:
        assert Cache(tmp_path).rows(name, seed, list) == [{"name": name, "seed": seed}]


def test_a_step_that_was_killed_is_run_again_whole(tmp_path):
    def killed():
        yield {"n": 1}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Cache(tmp_path).rows("step", {}, killed)

    assert Cache(tmp_path).rows("step", {}, lambda: [{"n": 1}, {"n": 2}]) == [{"n": 1}, {"n": 2}]


def test_a_step_that_was_killed_while_it_was_written_is_run_again(tmp_path, monkeypatch):
    def killed(self, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", killed)
        Cache(tmp_path).rows("step", {}, lambda: [{"n": 1}])

    assert Cache(tmp_path).rows("step", {}, lambda: [{"n": 2}]) == [{"n": 2}]


def test_a_folder_that_was_killed_half_way_is_finished(tmp_path):
    def killed(folder):
        (folder / "one").touch()
        raise KeyboardInterrupt

    def finish(folder):
        assert (folder / "one").exists()
        (folder / "two").touch()

    with pytest.raises(KeyboardInterrupt):
        Cache(tmp_path).made("step", {}, killed)
    made = Cache(tmp_path).made("step", {}, finish)

    assert {path.name for path in made.iterdir()} == {"one", "two"}
    assert Cache(tmp_path).made("step", {}, killed) == made


def test_the_best_of_n_is_the_highest_score_among_the_first_n():
    rows = [{"text": str(n), "token_ids": [0] * (n + 1), "prompt_tokens": 10} for n in range(4)]
    scores = [0.1, 0.5, -1.0, 0.9]

    picked = [best_of(rows, scores, n) for n in (1, 2, 3, 4)]

    assert [row["text"] for row in picked] == ["0", "1", "1", "3"]
    assert picked[0]["forward_tokens"] == 10 + 1
    assert picked[1]["forward_tokens"] == 10 + (1 + 2) + (10 + 1) + (10 + 2)
    assert picked[3]["log_ratio"] == kl_of_best(4) == pytest.approx(1.3863 - 0.75, abs=1e-4)
    assert kl_of_best(1) == 0.0


def test_a_combined_adapter_adds_up_the_changes_of_the_weights(tmp_path):
    backbone = make_model(tmp_path / "backbone")
    one, other = (make_adapter(tmp_path / str(seed), backbone, seed=seed) for seed in (1, 2))
    soup = tmp_path / "soup"
    soup.mkdir()

    combine([one, other], [0.75, -0.5], backbone, soup)

    def merged(adapter):
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(backbone), adapter)
        return model.merge_and_unload().state_dict()

    base = AutoModelForCausalLM.from_pretrained(backbone).state_dict()
    found, first, second = merged(soup), merged(one), merged(other)
    changed = [name for name in base if not torch.equal(base[name], first[name])]
    assert len(changed) == 6  # q and v of three layers
    for name in base:
        expected = base[name] + 0.75 * (first[name] - base[name]) - 0.5 * (second[name] - base[name])
        assert torch.allclose(found[name], expected, atol=1e-5)
