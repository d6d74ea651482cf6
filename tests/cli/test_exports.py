"""Results through the command line: files that go in again."""

import json

import pandas as pd


def test_a_csv_of_run_can_be_scored_with_nothing_lost(genarm, models, tmp_path):
    rows = [{"id": f"old {i}", "key": f"k{i}", "prompt": f"Hi {i}"} for i in range(2)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arm = ["--arm", models / "arm"]
    options = ["--base", models / "base", "--max-new-tokens", "3", "--id-column", "key"]
    ran = genarm("run", "rows.jsonl", "-o", "out.csv", *options, *arm, "1")
    assert ran.returncode == 0, ran.stderr
    scored = genarm("score", "out.csv", "-o", "again.csv", "--response-column", "completion", *arm)
    assert scored.returncode == 0, scored.stderr
    before, after = (pd.read_csv(tmp_path / name).to_dict("records") for name in ("out.csv", "again.csv"))
    assert [row["input_rewards.arm"] for row in after] == [row["rewards.arm"] for row in before]
    assert [(row["id"], row["input_id"]) for row in after] == [("k0", "old 0"), ("k1", "old 1")]
