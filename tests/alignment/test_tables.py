"""results.json as Markdown."""

from benchmarks.alignment.tables import markdown


def estimate(value):
    return {"value": value, "low": value - 0.125, "high": value + 0.125}


def test_bars_comparisons_and_points_are_shown():
    names = ("positive", "plain", "win_positive", "kl", "variety", "tokens", "forward_tokens")
    point = {"method": "base", "strength": "", "n": 40, "distinct_2": 0.5} | {name: estimate(60.0) for name in names}
    comparison = {"at": "DPO scale=1", "cost": 3.25, "our_gain": estimate(0.5), "their_gain": estimate(0.25)}
    comparison |= {"difference": estimate(0.25), "ratio": estimate(2.0)}
    bars = [
        {"bar": "at least 0.9 of DPO", "met": True, "figures": [comparison]},
        {"bar": "above ARGS", "met": False, "figures": []},
        {"bar": "above best-of-n", "met": None, "figures": []},
    ]
    held_out = [{"arm": "plain", "n": 16, "accuracy": estimate(0.75), "met": True}]
    results = {"commit": "0123456789abcdef", "seed": 1, "interval": "95 %", "bars": bars, "points": [point]}
    results |= {"held_out_pairs": held_out}

    text = markdown(results)

    assert "n = 40 prompts; 95 %, seed 1; made by commit `0123456789ab`." in text
    assert "| plain | 16 | 0.750 (0.625 to 0.875) | cleared |" in text
    assert "| at least 0.9 of DPO | cleared |" in text
    assert "| above ARGS | **missed** |" in text
    assert "| above best-of-n | not run |" in text
    assert "| DPO scale=1 | 3.25 | 0.500 (0.375 to 0.625) | 0.250 (0.125 to 0.375) |" in text
    assert "| base |  | 60.0 (59.9 to 60.1) |" in text
    assert text.rstrip().endswith("| 0.500 | 60 | 60 |")
