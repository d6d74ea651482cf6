"""Results as files, read back by other tools."""

import gzip
import json
import os

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from db import jobs
from db.columnar import ArrowResults
from db.datasets import Columns, DatasetSource, open_dataset, writing
from db.datasets.writing import whole_file
from db.errors import DatasetError
from db.exports import Export, export
from db.results import export_rows
from db.spans import Span

ROWS = [
    {"id": "a", "prompt": "naïve\n\"quoted\", 漢字", "label": 1, "meta": {"tags": []}, "completion": "of the input"},
    {"id": 2, "prompt": "two", "label": None, "meta": {"tags": ["x"]}},
    {"prompt": "fails", "label": 2.5, "mixed": 1},
    {"prompt": "last", "mixed": "text", "messages": None, "void": {}},
]  # fmt: skip


@pytest.fixture
def write(ledger, tmp_path):
    """Export a job to a file, and return the file."""

    def write(job, name, **more):
        target = tmp_path / name
        export(ledger, job, Export(str(target), **more))
        assert [path.name for path in tmp_path.iterdir() if path.suffix != ".db" and ".db-" not in path.name] == [name]
        return target

    return write


def close(one, other):
    return one == pytest.approx(other, abs=1e-6)


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.parquet", "-"])
def test_half_of_a_surrogate_pair_in_a_row_is_replaced(ledger, finished, tmp_path, capsys, name):
    job = finished([{"id": "a", "prompt": "p", "label": "half \ud800"}])
    target = tmp_path / name
    export(ledger, job, Export(name if name == "-" else str(target)))
    if name == "out.parquet":
        assert pq.read_table(target).column("label").to_pylist() == ["half \ufffd"] * 2
    else:
        written = capsys.readouterr().out if name == "-" else target.read_text(encoding="utf-8")
        assert written.count("half \ufffd") == 2


def test_half_of_a_surrogate_pair_is_written_as_json_escapes_it(tmp_path):
    with whole_file(str(tmp_path / "out.jsonl")) as file:
        file.write("half \ud800")
    assert (tmp_path / "out.jsonl").read_text() == "half \\ud800"


def test_parquet_has_the_rows_with_float32_lists(ledger, finished, write):
    job = finished(ROWS, failing={2})
    table = pq.read_table(write(job, "out.parquet"))
    rows, expected = table.to_pylist(), list(export_rows(ledger, job.id))
    assert table.schema.field("logprobs").type == pa.list_(pa.float32())
    assert table.schema.field("token_rewards").type.field("helpful").type == pa.list_(pa.float32())
    assert table.schema.field("label").type == pa.float64()
    assert len(rows) == len(expected) == 7
    for row, other in zip(rows, expected, strict=True):
        assert row["id"] == (other["id"] if isinstance(other["id"], str) else json.dumps(other["id"]))
        for name in ("sample", "prompt", "label", "input_completion", "error"):
            assert row[name] == other.get(name), name
        for name in ("completion", "finish_reason", "tokens", "prompt_tokens"):
            assert row[name] == other.get(name), name
        if other["error"] is None:
            assert close(row["logprobs"], other["logprobs"])
            assert close(row["rewards"], other["rewards"])
            assert close(row["token_rewards"]["helpful"], other["token_rewards"]["helpful"])
    assert (rows[4]["tokens"], rows[4]["rewards"], rows[4]["token_rewards"]) == (None, None, None)
    assert [rows[i]["mixed"] for i in (0, 4, 5)] == [None, "1", "text"]
    assert (rows[0]["meta"], rows[5]["void"]) == ({"tags": []}, "{}")


@pytest.mark.parametrize("limit", ["GROUP_ROWS", "GROUP_BYTES"])
def test_small_spans_share_a_row_group(ledger, finished, tmp_path, monkeypatch, limit):
    job = finished([f"p{i}" for i in range(95)], samples=1)
    spans = [Span(first, first + 5) for first in range(0, 95, 5)]
    target = tmp_path / "out.parquet"
    export(ledger, job, Export(str(target)), spans)
    assert pq.ParquetFile(target).num_row_groups == 1
    ids = pq.read_table(target).column("id").to_pylist()
    size = ArrowResults.of(ledger, job.id).table(Span(0, 5)).nbytes
    monkeypatch.setattr(writing, limit, 18 if limit == "GROUP_ROWS" else size * 3.5)
    export(ledger, job, Export(str(target)), spans)
    file = pq.ParquetFile(target)
    assert [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] == [20, 20, 20, 20, 15]
    assert pq.read_table(target).column("id").to_pylist() == ids == list(range(95))


def test_parquet_of_a_job_without_arms_or_results(submit, finished, write):
    assert pq.read_table(write(submit(["a", "b"], arms=()), "out.parquet")).num_rows == 0
    table = pq.read_table(write(finished(["a"], arms=(), samples=1), "out.parquet"))
    assert table.num_rows == 1
    assert "rewards" not in table.column_names


def test_csv_has_every_column_and_no_lists(ledger, finished, write):
    job = finished(ROWS, failing={2})
    frame = pd.read_csv(write(job, "out.csv"), keep_default_na=False)
    assert list(frame.columns) == [
        "id", "sample", "completion", "finish_reason", "prompt_tokens", "rewards.helpful", "rewards.harmless",
        "error.code", "error.message", "prompt", "label", "meta", "input_completion", "mixed", "messages", "void",
    ]  # fmt: skip
    assert list(frame["prompt"].unique()) == [row["prompt"] for row in ROWS]
    first = next(export_rows(ledger, job.id))
    assert float(frame["rewards.helpful"][0]) == first["rewards"]["helpful"]
    assert (frame["error.code"][4], frame["completion"][4], frame["meta"][0]) == ("prompt_too_long", "", '{"tags": []}')


def test_a_column_that_gave_way_to_the_id_is_passed_on(ledger, finished):
    (row,) = export_rows(ledger, finished([{"id": "u", "input_id": 1, "prompt": "p"}], samples=1).id)
    assert (row["id"], row["input_id"]) == ("u", 1)


def read(path):
    """The rows of a file that was written."""
    if path.suffix == ".csv":
        return pd.read_csv(path, dtype=str).to_dict("records")
    return pq.read_table(path).to_pylist() if path.suffix == ".parquet" else list(map(json.loads, path.open()))


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.parquet"])
def test_no_column_of_the_input_is_lost_or_merged_with_another(finished, write, name):
    columns = {"input_id": "kept", "sample": "s", "input_sample": "t", "input_tokens": "u", "finish_reason": "v"}
    row, *_ = read(write(finished([{"id": "a", "prompt": "p", **columns}]), name))
    renamed = {"input_input_sample": "s", "input_finish_reason": "v"}
    unchanged = {"input_id": "kept", "input_sample": "t", "input_tokens": "u"}
    assert {name: value for name, value in row.items() if name.startswith("input_")} == renamed | unchanged
    assert row["id"] == "a"


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.parquet"])
def test_an_export_goes_in_again_and_comes_out_with_all_that_it_had(ledger, fill, finished, tmp_path, name):
    job = finished([{"id": f"r{i}", "prompt": f"p{i}"} for i in range(3)], failing={2})
    path = tmp_path / name
    for _ in range(3):
        export(ledger, job, Export(str(path)))
        before = read(path)
        source = DatasetSource(str(path), Columns(response="completion", needs_response=True))
        job = jobs.submit(ledger, jobs.NewJob(spec=job.spec, samples=1, kind="score"), open_dataset(source))
        fill(job)
    export(ledger, job, Export(str(path)))
    after = read(path)
    rewards = "rewards.helpful" if name == "out.csv" else "rewards"
    for row, other in zip(after[:4], before, strict=False):
        assert row[f"input_{rewards}"] == other[f"input_{rewards}"]  # of the first export
        assert row[f"input_input_input_{rewards}"] == other[rewards]
    assert [row["id"] for row in after] == ["r0", "r0", "r1", "r1", "r2"]


def test_csv_columns_of_other_arms_pass_unchanged(finished, write):
    columns = {"rewards.other": 1, "rewards.helpful": 2, "input_rewards.helpful": 3, "error.code": "x"}
    row, *_ = read(write(finished([{"id": "a", "prompt": "p", **columns}]), "out.csv"))
    names = ("rewards.other", "input_input_rewards.helpful", "input_rewards.helpful", "input_error.code")
    assert [row[name] for name in names] == ["1", "2", "3", "x"]
    assert float(row["rewards.helpful"]) != 2
    assert pd.isna(row["error.code"])


@pytest.mark.parametrize("name", ["out.jsonl.gz", "out.jsonl.zst", "out.csv.gz"])
def test_files_are_compressed_as_their_name_says(finished, write, name):
    path = write(finished(["a"]), name)
    if name.endswith("gz"):
        assert gzip.decompress(path.read_bytes()).count(b"\n") >= 2
    else:
        with pa.CompressedInputStream(path.open("rb"), "zstd") as file:
            assert len([json.loads(line) for line in file.read().splitlines()]) == 2


def test_an_export_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), whole_file(str(path)) as file:
        file.write("half a fi")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_pipe_is_written_to_and_not_replaced(ledger, finished):
    job = finished(["a"])
    end, start = os.pipe()
    export(ledger, job, Export(f"/dev/fd/{start}", "jsonl"))
    os.close(start)
    with os.fdopen(end) as pipe:
        assert len(pipe.readlines()) == 2


@pytest.mark.parametrize(
    ("target", "more", "message"),
    [
        ("out.txt", {}, "say --format"),
        ("out.parquet.gz", {}, "Parquet is compressed inside; give a file that ends in .parquet"),
        ("out.zst", {"file_format": "parquet"}, "Parquet is compressed inside"),
        ("nowhere/out.jsonl", {}, "there is no folder"),
        ("-", {"file_format": "parquet"}, "cannot be written to stdout"),
        ("out.jsonl", {"shape": "preference", "by": {"kind": 1.0}}, r"--by kind: .*helpful, harmless"),
        ("out.jsonl", {"shape": "sft", "file_format": "openai"}, "leave out --as"),
        ("", {"file_format": "jsonl"}, "is a folder"),
    ],
)
@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_what_cannot_be_exported_is_refused(ledger, finished, tmp_path, target, more, message):
    job = finished(["a"])
    target = target if target == "-" else f"{tmp_path}/{target}"
    with pytest.raises(DatasetError, match=message):
        export(ledger, job, Export(target, **more))
