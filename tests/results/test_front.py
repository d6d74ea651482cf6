"""Fronts and hypervolumes, against values worked out by hand and by counting."""

import random
from itertools import combinations
from math import gamma, hypot, pi, prod
from operator import gt, sub
from statistics import mean

import pytest

from db import jobs
from db.results import export_rows
from worker.report.collect import collect
from worker.report.front import front, hypervolume, worst
from worker.report.sweep import front_of, label


def test_a_point_that_another_dominates_is_not_on_the_front():
    assert front([(1, 3), (2, 2), (3, 1), (2, 1), (1, 3)]) == [True, True, True, False, True]


@pytest.mark.parametrize(
    ("points", "reference", "volume"),
    [
        ([(3.0,), (2.0,)], (1.0,), 2.0),
        ([(1.0, 3.0), (2.0, 2.0), (3.0, 1.0)], (0.0, 0.0), 6.0),
        ([(1.0, 1.0), (2.0, 2.0)], (0.0, 0.0), 4.0),
        ([(1.0, 1.0, 2.0), (2.0, 1.0, 1.0)], (0.0, 0.0, 0.0), 3.0),
        ([(0.0, 5.0)], (0.0, 0.0), 0.0),
        ([], (0.0, 0.0), 0.0),
    ],
)
def test_hypervolumes_by_hand(points, reference, volume):
    assert hypervolume(points, reference) == volume


@pytest.mark.parametrize("dimensions", [2, 3, 4])
def test_a_hypervolume_counts_the_cells_below_the_points(dimensions):
    chance = random.Random(dimensions)
    points = [tuple(chance.randrange(1, 6) for _ in range(dimensions)) for _ in range(12)]
    cells = [()]
    for _ in range(dimensions):
        cells = [(*cell, n) for cell in cells for n in range(5)]
    inside = sum(any(all(c < p for c, p in zip(cell, point, strict=True)) for point in points) for cell in cells)
    assert hypervolume(points, (0,) * dimensions) == inside


@pytest.mark.parametrize("dimensions", [1, 2, 3, 5])
def test_a_hypervolume_is_that_of_inclusion_and_exclusion(dimensions):
    chance = random.Random(dimensions)
    reference = tuple(chance.uniform(-2, 0) for _ in range(dimensions))
    points = [tuple(chance.uniform(-1, 3) for _ in range(dimensions)) for _ in range(7)]
    points += [points[0], reference]
    boxes = [point for point in set(points) if all(map(gt, point, reference))]
    volume = 0.0
    for count in range(1, len(boxes) + 1):
        for some in combinations(boxes, count):
            common = map(min, zip(*some, strict=True))
            volume -= (-1) ** count * prod(map(sub, common, reference))
    assert hypervolume(points, reference) == pytest.approx(volume)


@pytest.mark.parametrize("dimensions", [3, 5])
def test_the_points_of_the_largest_sweep_are_no_burden_though_all_are_on_the_front(dimensions):
    chance = random.Random(0)
    points = []
    for _ in range(1000):
        direction = [abs(chance.gauss(0, 1)) for _ in range(dimensions)]
        points.append(tuple(value / hypot(*direction) for value in direction))
    assert front(points) == [True] * 1000
    ball = pi ** (dimensions / 2) / gamma(dimensions / 2 + 1) / 2**dimensions
    assert 0.6 * ball < hypervolume(points, (0.0,) * dimensions) < ball


def test_the_front_of_one_arm_is_that_of_mean_token_reward_and_kl(ledger, finished):
    sweep = [0.0, 9.0, 4.0]
    rows = [{"prompt": f"p{i}", "weights": {"helpful": w}} for i in range(40) for w in sweep]
    job = finished(rows, sweep={"helpful": sweep}, failing={0})
    found = front_of(ledger, jobs.find(ledger, job.id))
    assert [point.weights["helpful"] for point in found.points] == sweep
    assert [(point.completions, point.failed) for point in found.points] == [(78, 1), (80, 0), (80, 0)]
    vectors = []
    for weight, point in zip(sweep, found.points, strict=True):
        done = [row for row in export_rows(ledger, job.id) if not row["error"] and row["weights"]["helpful"] == weight]
        reward = mean(row["rewards"]["helpful"] / len(row["tokens"]) for row in done)
        kl = mean(sum(row["logprobs"]) - sum(row["base_logprobs"]) for row in done)
        assert (point.rewards["helpful"], point.kl) == pytest.approx((reward, kl), abs=1e-5)
        assert point.tokens == pytest.approx(mean(len(row["tokens"]) for row in done))
        vectors.append((point.rewards["helpful"], -point.kl))
    assert found.on_front == front(vectors)
    assert found.on_front[1]
    assert found.hypervolume == hypervolume(vectors, worst(vectors))
    assert front_of(ledger, finished(["a"])) is None


def test_the_front_of_several_arms_is_that_of_their_rewards(ledger, finished):
    weights = [{"helpful": a, "harmless": b} for a in (0.0, 9.0) for b in (0.0, 9.0)]
    rows = [{"prompt": f"p{i}", "weights": point} for i in range(40) for point in weights]
    job = finished(rows, sweep={"helpful": [0.0, 9.0], "harmless": [0.0, 9.0]})
    found = front_of(ledger, jobs.find(ledger, job.id))
    vectors = [(point.rewards["helpful"], point.rewards["harmless"]) for point in found.points]
    assert found.on_front == front(vectors)
    assert not found.on_front[0]
    assert found.hypervolume == hypervolume(vectors, worst(vectors)) > 0
    assert [point.kl for point in found.points] == [None] * 4


def test_a_point_is_the_weights_of_the_swept_arms_and_bad_weights_are_of_none(ledger, finished):
    sweep = {"helpful": [2.0, 0.1, -1.0], "harmless": [0.0, 1.0]}
    plain = [{"prompt": "p", "weights": {"helpful": a, "harmless": b}} for a in (2.0, 0.1, -1.0) for b in (0.0, 1.0)]
    with_more = [{**row, "weights": {"third": n, **row["weights"]}} for n, row in enumerate(plain)]
    bad = [{"prompt": "p", "weights": weights} for weights in (1, "much", [1], True)]
    count = len(plain + with_more)
    failing = {0, *range(count, count + len(bad))}
    job = finished(plain + with_more + bad, sweep=sweep, failing=failing, arms=("helpful", "harmless", "third"))
    found = front_of(ledger, jobs.find(ledger, job.id))
    assert [tuple(point.weights.values()) for point in found.points] == [
        (2.0, 0.0), (2.0, 1.0), (0.1, 0.0), (0.1, 1.0), (-1.0, 0.0), (-1.0, 1.0)
    ]  # fmt: skip
    assert [(point.completions, point.failed) for point in found.points] == [(2, 1)] + [(4, 0)] * 5
    assert all(set(point.rewards) == {"helpful", "harmless", "third"} for point in found.points)
    data = collect(ledger, jobs.progress(ledger, job.id), 100)
    assert sorted(set(data.entries.weights)) == sorted(["", *(label(point.weights) for point in found.points)])
