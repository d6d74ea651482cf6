"""`genarm arm train` as people type it."""

import csv
import json
import signal
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from models.loading import describe
from models.vocabulary import require_fit
from tests.cli.conftest import facts
from tests.tiny_models import TEMPLATE

PAIRS = [{"prompt": f"q{n}", "chosen": "yes " * (1 + n % 3), "rejected": "no " * (1 + n % 2)} for n in range(16)]


@pytest.fixture
def train(genarm_here, models):
    def run(pairs, *options):
        words = ("--base", models / "base", "-o", "arm", "--batch", 8, "--dtype", "float32", "--json")
        return genarm_here("arm", "train", pairs, *words, *options)

    return run


def write_pairs(folder, rows=PAIRS, name="pairs.jsonl"):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def test_every_format_trains_the_same_arm(here, train):
    import pyarrow as pa
    import pyarrow.parquet as pq

    write_pairs(here)
    pq.write_table(pa.Table.from_pylist(PAIRS), here / "pairs.parquet")
    lines = ["prompt,chosen,rejected", *(",".join(row.values()) for row in PAIRS)]
    (here / "pairs.csv").write_text("\n".join(lines) + "\n")
    (here / "folder").mkdir()
    write_pairs(here / "folder", name="train.jsonl")

    found = {}
    for source in ("pairs.jsonl", "pairs.parquet", "pairs.csv", "folder"):
        assert facts(train(source))["pairs"] == 16
        found[source] = load_file("arm/adapter_model.safetensors")

    first = found.pop("pairs.jsonl")
    for source, weights in found.items():
        assert all(weight.equal(weights[name]) for name, weight in first.items()), source


def test_messages_in_csv_are_json_and_a_named_column_displaces_one_called_so(here, train):
    def say(role, content):
        return [{"role": role, "content": content}]

    rows = [{"q": say("user", f"q{n}"), "chosen": say("assistant", "yes"), "rejected": say("assistant", "no"),
             "prompt": "of another kind"} for n in range(8)]  # fmt: skip
    write_pairs(here, rows)
    write_pairs(here, [{**row, "prompt": row["q"]} for row in rows], "named.jsonl")
    with (here / "pairs.csv").open("w") as file:
        writer = csv.writer(file)
        writer.writerow(rows[0])
        writer.writerows(
            [value if isinstance(value, str) else json.dumps(value) for value in row.values()] for row in rows
        )

    found = {}
    for source, *options in (
        ("pairs.jsonl", "--prompt-column", "q"),
        ("pairs.csv", "--prompt-column", "q"),
        ("named.jsonl",),
    ):
        assert facts(train(source, *options))["pairs"] == 8
        found[source] = load_file("arm/adapter_model.safetensors")
        assert (
            "Responses have 4.0 tokens in the mean where they are chosen, 3.0" in (here / "arm/README.md").read_text()
        )

    first = found.pop("named.jsonl")
    for weights in found.values():
        assert all(weight.equal(weights[name]) for name, weight in first.items())


def test_pandas_own_spelling_of_messages_and_one_column_for_two_are_refused(here, train):
    (here / "pairs.csv").write_text("prompt,chosen,rejected\n\"[{'role': 'user', 'content': 'q'}]\",yes,no\n")

    spelled = train("pairs.csv")
    twice = train("pairs.csv", "--chosen-column", "rejected")

    assert spelled.exit_code == twice.exit_code == 2
    assert "`prompt` is a text that spells a list of messages; give the list itself, in CSV as JSON" in spelled.stderr
    assert "--prompt-column, --chosen-column and --rejected-column must name three columns" in twice.stderr


def test_raw_takes_prompts_as_they_stand(here, train):
    write_pairs(here, [{"chosen": f"{n} is a number", "rejected": f"{n} is a word"} for n in range(8)])

    refused, trained = train("pairs.jsonl"), train("pairs.jsonl", "--raw")

    assert refused.exit_code == 2
    assert "`prompt` is missing, and a chat template takes no beginning of a text (--raw does)" in refused.stderr
    assert facts(trained)["pairs"] == 8
    assert "Responses have 8.0 tokens in the mean where they are chosen, 6.0" in (here / "arm/README.md").read_text()


def test_a_hub_dataset_with_conversations_in_two_splits(here, train):
    def row(n, reply):
        return [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": reply}]

    rows = [{"chosen": row(n, "yes"), "rejected": row(n, "no"), "score": n} for n in range(12)]
    (here / "ultra").mkdir()
    write_pairs(here / "ultra", rows[:8], "train.jsonl")
    write_pairs(here / "ultra", rows[8:], "test.jsonl")

    done = train("hf:ultra", "--split", "train", "--eval-split", "test")

    assert facts(done)["pairs"] == 8
    assert "8 pairs for training, 4 held out" in done.stderr
    assert "- hf:ultra test: 4 pairs" in (here / "arm" / "README.md").read_text()


def test_bad_pairs_are_named_by_line_and_the_rest_is_trained_on(here, train):
    rows = [*PAIRS, {"prompt": "p", "chosen": "x", "rejected": "x"}, {"prompt": "p", "chosen": "", "rejected": "x"}]
    rows += [{"prompt": "p" * 300, "chosen": "x", "rejected": "y"}]

    done = train(write_pairs(here, rows))

    assert facts(done)["left_out"] == {"pairs.jsonl": {"identical": 1, "empty": 1, "prompt too long": 1}}
    assert "pairs.jsonl, line 17: identical: `chosen` and `rejected` are the same" in done.stderr
    assert "pairs.jsonl: 16 pairs, left out: 1 identical, 1 empty, 1 prompt too long" in done.stderr


def test_columns_by_other_names_and_pairs_that_differ_in_length(here, train):
    rows = [{"question": f"q{n}", "good": "yes " * 9, "bad": "no"} for n in range(8)]
    source = write_pairs(here, rows)

    refused = train(source)
    done = train(source, "--prompt-column", "question", "--chosen-column", "good", "--rejected-column", "bad")

    assert refused.exit_code == 2
    assert "has no column 'chosen' (its columns: question, good, bad); name it with --chosen-column" in refused.stderr
    assert facts(done)["pairs"] == 8
    assert "chosen responses are longer than rejected ones (37 tokens in the mean, not 3)" in done.stderr


def test_a_whole_model_is_an_arm_and_an_adapter_does_not_land_on_it(here, train, models):
    write_pairs(here)
    facts(train("pairs.jsonl", "--full", "--lr", "1e-3"))

    refused = train("pairs.jsonl")

    arm = describe("arm", here)
    require_fit(describe(str(models / "base"), here).vocabulary, arm.vocabulary, "base", "arm")
    assert arm.template == TEMPLATE
    assert "library_name: transformers" in (here / "arm" / "README.md").read_text()
    assert refused.exit_code == 2
    assert "arm: holds a whole model (config.json); choose another folder" in refused.stderr


def test_ctrl_c_saves_and_resume_goes_on_to_the_weights_of_an_uninterrupted_training(
    tmp_path, start_genarm, genarm, models
):
    write_pairs(tmp_path)
    words = ["arm", "train", "pairs.jsonl", "--base", str(models / "base"), "--eval-fraction", "0.2"]
    words += ["--epochs", "10", "--batch", "4", "--dtype", "float32", "--eval-every", "1"]

    process = start_genarm(*words, "-o", "stopped")
    said = []
    for line in process.stderr:
        said.append(line)
        if line.startswith("step 2:"):
            process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert len(said) == len(set(said)), said
    assert "Stopping; once more to break off.\n" in said
    assert "of 40; the same command with --resume goes on" in said[-1]
    assert not (tmp_path / "stopped" / "adapter_model.safetensors").exists()

    refused = genarm(*words, "-o", "stopped")
    resumed = genarm(*words, "-o", "stopped", "--resume")
    whole = genarm(*words, "-o", "whole")

    assert refused.returncode == 2
    assert "go on with --resume, or delete" in refused.stderr
    assert (resumed.returncode, whole.returncode) == (0, 0), resumed.stderr + whole.stderr
    found, expected = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("stopped", "whole"))
    assert all(weight.equal(found[name]) for name, weight in expected.items())


def test_two_processes_train_the_arm_that_one_does_and_one_prints(tmp_path, environment, genarm, models):
    write_pairs(tmp_path)
    words = ["arm", "train", "pairs.jsonl", "--base", str(models / "base"), "--eval-fraction", "0.2"]
    words += ["--batch", "4", "--micro-batch", "2", "--dtype", "float32", "--epochs", "2", "--json"]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "worker.cli"]

    both = subprocess.run(
        [*launch, *words, "-o", "both"],
        cwd=tmp_path, env=environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=200,
        check=False,
    )  # fmt: skip
    one = genarm(*words, "-o", "one")

    assert both.returncode == 0, both.stderr
    (line,) = both.stdout.splitlines()
    assert both.stderr.count("13 pairs for training, 3 held out") == 1
    assert json.loads(line)["steps"] == json.loads(one.stdout)["steps"]
    assert json.loads(line)["accuracy_after"] == json.loads(one.stdout)["accuracy_after"]
    expected = load_file(tmp_path / "one" / "adapter_model.safetensors")
    for name, weight in load_file(tmp_path / "both" / "adapter_model.safetensors").items():
        assert weight.allclose(expected[name], atol=1e-3), name
