"""The chart of a front in characters."""

from worker.cli.scatter import scatter


def test_each_point_is_at_its_place_and_the_best_stand_out():
    lines = list(
        scatter([(0.0, 1.0, False), (5.0, 2.0, True), (10.0, -1.0, False), (10.0, -1.0, True)], "KL", "reward")
    )
    assert lines == [
        "       reward",
        " 2.000 │                            ●",
        "       │",
        "       │",
        "       │",
        "       │·",
        *["       │"] * 6,
        "-1.000 │                                                       ●",
        "       └──────────────────────────────────────────────────────── KL",
        "        0.000                                             10.000",
    ]


def test_a_single_point_is_a_chart_too():
    lines = list(scatter([(1.0, 1.0, True)], "x", "y"))
    assert lines[-3] == "1.000 │●"
    assert sum(line.count("●") for line in lines) == 1
