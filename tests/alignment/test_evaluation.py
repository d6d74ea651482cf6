"""Points, fronts at equal cost, intervals and hypervolumes, on figures that can be checked by hand."""

import numpy as np
import pytest

from benchmarks.alignment.bars import Bars, accuracy
from benchmarks.alignment.evaluation import (
    Bootstrap,
    Front,
    Point,
    compare,
    estimate,
    hypervolumes,
    objectives,
)
from benchmarks.alignment.judges import distinct_2, plain, positive, variety

PROMPTS = 40


@pytest.fixture
def bootstrap():
    return Bootstrap(PROMPTS, seed=7, resamples=200)


@pytest.fixture
def point():
    """A point whose gold scores, KL and tokens are given, one number for all prompts or one for each."""

    def make(method="GenARM", strength="", *, kl=0.0, tokens=100.0, **scores):
        rows = [{"text": "", "log_ratio": 0.0, "forward_tokens": 0, "token_ids": []}] * PROMPTS
        made = Point(method, strength, rows)
        given = {"positive": 0.0, "plain": 0.0, "kl": kl, "forward_tokens": tokens} | scores
        columns = {name: np.broadcast_to(np.asarray(value, float), PROMPTS) for name, value in given.items()}
        object.__setattr__(made, "values", made.values | columns)
        return made

    return make


def test_a_front_is_read_between_its_points_and_not_past_the_last(point, bootstrap):
    base = point("base", positive=0.2)
    front = Front(base, [point(kl=8.0, positive=0.8), point(kl=2.0, positive=0.5)], "positive", "kl", bootstrap)

    def gain_at(cost):
        return front.gain_at(np.full(201, cost))[0]

    assert gain_at(0.0) == pytest.approx(0.0)
    assert gain_at(1.0) == pytest.approx(0.15)
    assert gain_at(2.0) == pytest.approx(0.3)
    assert gain_at(5.0) == pytest.approx(0.45)
    assert np.isnan(gain_at(8.1))


def test_methods_are_compared_at_the_cost_of_one_of_them(point, bootstrap):
    base = point("base")
    ours = Front(base, [point(kl=4.0, positive=0.8)], "positive", "kl", bootstrap)
    theirs = Front(base, [point(kl=2.0, positive=0.5), point(kl=9.0, positive=0.9)], "positive", "kl", bootstrap)

    (found,) = compare(ours, theirs, theirs, ["a", "b"])  # b costs more than we reach

    assert found["at"] == "a"
    assert found["cost"] == 2.0
    assert found["our_gain"]["value"] == pytest.approx(0.4)
    assert found["difference"]["value"] == pytest.approx(-0.1)
    assert found["ratio"]["value"] == pytest.approx(0.8)


def test_resamples_follow_the_seed_and_take_the_same_prompts_for_all():
    values = np.arange(PROMPTS, dtype=float)

    means = Bootstrap(PROMPTS, seed=1).means(values)

    assert (means == Bootstrap(PROMPTS, seed=1).means(values)).all()
    assert (means != Bootstrap(PROMPTS, seed=2).means(values)).any()
    assert means[0] == values.mean()
    shifted = Bootstrap(PROMPTS, seed=1).means(values + 0.5) - means
    assert shifted == pytest.approx(np.full(len(means), 0.5))  # paired: a constant gain has no spread


def test_an_interval_holds_the_mean_and_has_the_width_of_its_standard_error():
    values = np.random.default_rng(0).normal(size=400)

    found = estimate(Bootstrap(400, seed=3).means(values))

    assert found.low < found.value < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


def test_a_win_is_one_and_a_tie_a_half(point):
    scores = np.zeros(PROMPTS)
    scores[:10], scores[10:30] = 1.0, -1.0

    wins = point(positive=scores).wins(point("base", positive=0.0), "positive")

    assert wins.tolist() == [1.0] * 10 + [0.0] * 20 + [0.5] * 10


def test_the_hypervolume_counts_what_beats_the_base_in_both_objectives(point, bootstrap):
    spread = np.tile([-1.0, 1.0], PROMPTS // 2)
    base = point("base", positive=spread, plain=10 * spread)
    front = [
        point(positive=spread + 2.0, plain=10 * spread + 10.0),  # 2σ and 1σ
        point(positive=spread + 1.0, plain=10 * spread + 30.0),  # 1σ and 3σ
        point(positive=spread + 9.0, plain=10 * spread - 1.0),  # worse than the base in one
    ]

    assert objectives(front[0], base, bootstrap)[:, 0] == pytest.approx([2.0, 1.0])
    assert hypervolumes(front, base, bootstrap)[0] == pytest.approx(2 * 1 + 1 * 2)


@pytest.mark.parametrize(("right", "is_met"), [(3, True), (2, False)])
def test_an_arm_is_held_to_three_quarters_of_its_held_out_pairs(right, is_met):
    rows = [{"chosen": -10.0, "rejected": -11.0}] * right + [{"chosen": -11.0, "rejected": -11.0}] * (4 - right)

    found = accuracy("plain", rows, seed=1)

    assert (found["n"], found["accuracy"]["value"], found["met"]) == (4, right / 4, is_met)


@pytest.mark.parametrize(("gain", "is_met"), [(0.46, True), (0.44, False)])
def test_the_bar_against_dpo_is_nine_tenths_of_its_gain_at_its_kl(point, bootstrap, gain, is_met):
    points = {
        "base": [point("base")],
        "GenARM": [point(kl=2.0, positive=gain)],
        "GenARM − base": [point(kl=2.0, positive=0.48)],
        "DPO": [point("DPO", kl=2.0, positive=0.5)],
    }

    bars = Bars(points, bootstrap)

    assert [bars.dpo(method)["met"] for method in ("GenARM", "GenARM − base")] == [is_met, True]
    assert [bar["met"] for bar in bars.all()].count(None) == 5  # the others were not run


@pytest.mark.parametrize(("theirs", "is_met"), [(0.7, True), (0.9, False)])
def test_best_of_n_is_compared_with_the_most_that_guidance_reaches_at_its_compute(point, bootstrap, theirs, is_met):
    points = {
        "base": [point("base")],
        "GenARM": [point(kl=0.1, tokens=200.0, positive=0.01), point(kl=9.0, tokens=200.0, positive=0.8)],
        "best-of-n": [point("best-of-n", tokens=200.0, positive=theirs)],
    }

    bar = Bars(points, bootstrap).best_of_n()

    assert [one["our_gain"]["value"] for one in bar["figures"]] == pytest.approx([0.01, 0.8])
    assert bar["met"] is is_met


def test_the_small_arm_is_held_to_seven_tenths_of_the_full_one(point, bootstrap):
    points = {
        "base": [point("base")],
        "GenARM": [point(kl=2.0, positive=0.8)],
        "weak-to-strong": [point("weak-to-strong", kl=1.0, positive=0.3)],
    }

    bar = Bars(points, bootstrap).weak()

    assert bar["figures"][0]["ratio"]["value"] == pytest.approx(0.3 / 0.4)
    assert bar["figures"][1]["ratio"]["value"] == pytest.approx(0.3 / 0.8)
    assert bar["met"] is False


def test_judges_know_good_from_bad_and_easy_from_hard():
    assert positive("What a lovely, happy day!") > 0.5 > -0.5 > positive("A terrible, sad disaster.")
    assert (
        plain("The cat sat on the mat.") > 90 > 30 > plain("Institutional heterogeneity necessitates reconciliation.")
    )
    assert 0.0 == plain("") == plain("incomprehensibilities " * 20)


def test_variety_falls_as_a_text_repeats_itself():
    assert variety("one two three four five six") == 1.0
    assert variety("so so so so so so") == pytest.approx((1 / 5) * (1 / 4) * (1 / 3))
    assert distinct_2(["a b c", "a b d"]) == pytest.approx(3 / 4)
