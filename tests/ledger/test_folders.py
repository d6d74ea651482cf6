"""Datasets of several files: as Spark, pyarrow and Hugging Face write them, and as patterns."""

import io
import json
import os
import threading

import datasets
import pandas as pd
import PIL.Image
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from db.datasets import DatasetSource, placed_rows
from db.errors import DatasetError
from tests.ledger.test_inputs import read


def rows_of(source, **options):
    return [row for _, row in placed_rows(DatasetSource(str(source), **options))]


def spark(folder, rows, suffix):
    """Write a folder as Spark does: part files, its mark of success and checksums."""
    folder.mkdir()
    for part in range(2):
        path = folder / f"part-0000{part}-c0ffee-c000.snappy{suffix}"
        own = pd.DataFrame(rows[part::2])
        if suffix == ".parquet":
            own.to_parquet(path)
        elif suffix == ".csv":
            own.to_csv(path, index=False)
        else:
            own.to_json(path, orient="records", lines=True)
        (folder / f".{path.name}.crc").write_bytes(b"crc")
    (folder / "_SUCCESS").touch()


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".json", ".json.gz"])
@pytest.mark.parametrize("name", ["rows", "rows.parquet", "rows.csv"])
def test_a_folder_of_spark_is_read_file_by_file(tmp_path, suffix, name):
    rows = [{"id": f"r{i}", "prompt": f"p{i}"} for i in range(6)]
    spark(tmp_path / name, rows, suffix)
    expected = [row for part in range(2) for row in rows[part::2]]
    assert rows_of(tmp_path / name) == expected
    place, _ = next(placed_rows(DatasetSource(f"{tmp_path / name}/")))
    first = {".parquet": "row 1", ".csv": "line 2"}.get(suffix, "line 1")
    assert place == f"part-00000-c0ffee-c000.snappy{suffix}, {first}"


@pytest.mark.parametrize(
    "values", [["1", "-20"], ["007", "8"], ["3000000000", "1"], ["a%20b", "ä=b"], ["__HIVE_DEFAULT_PARTITION__", "5"]]
)
def test_partition_columns_are_those_of_pyarrow(tmp_path, values):
    for value in values:
        folder = tmp_path / "rows" / f"n={value}" / "lang=en"
        folder.mkdir(parents=True)
        pq.write_table(pa.table({"prompt": [f"p {value}"]}), folder / "part-0.parquet")
    expected = pyarrow.dataset.dataset(tmp_path / "rows", partitioning="hive").to_table().to_pylist()
    assert rows_of(tmp_path / "rows") == expected


def test_a_partition_column_that_the_rows_contradict_is_refused(tmp_path):
    (tmp_path / "rows" / "n=1").mkdir(parents=True)
    path = tmp_path / "rows" / "n=1" / "part.jsonl"
    path.write_text('{"prompt": "a", "n": 1}\n')
    assert rows_of(tmp_path / "rows") == [{"prompt": "a", "n": 1}]
    path.write_text('{"prompt": "a", "n": 2}\n')
    with pytest.raises(DatasetError, match="its rows have a column 'n', and its folder gives another value"):
        rows_of(tmp_path / "rows")


@pytest.mark.parametrize(
    ("mark", "what"),
    [
        ("_delta_log/00000000000000000000.json", "a Delta table"),
        (".hoodie/hoodie.properties", "a Hudi table"),
        ("metadata/v1.metadata.json", "an Iceberg table"),
    ],
)
def test_a_table_whose_files_may_be_old_is_refused(tmp_path, mark, what):
    spark(tmp_path / "rows", [{"prompt": "a"}, {"prompt": "b"}], ".parquet")
    (tmp_path / "rows" / mark).parent.mkdir()
    (tmp_path / "rows" / mark).touch()
    with pytest.raises(DatasetError, match=f"is {what}, some files of which may be old; export it"):
        rows_of(tmp_path / "rows")


def test_folders_that_cannot_be_one_dataset_are_refused(tmp_path):
    (tmp_path / "empty.parquet").mkdir()
    with pytest.raises(DatasetError, match="the folder has no files of data"):
        rows_of(tmp_path / "empty.parquet")
    spark(tmp_path / "rows", [{"prompt": "a"}, {"prompt": "b"}], ".parquet")
    with pytest.raises(DatasetError, match="--split and --config are for Hugging Face datasets, and this is a folder"):
        rows_of(tmp_path / "rows", split="train")
    (tmp_path / "rows" / "more.csv").write_text("prompt\na\n")
    with pytest.raises(DatasetError, match="has files of several formats"):
        rows_of(tmp_path / "rows")
    (tmp_path / "rows" / "more.csv").rename(tmp_path / "rows" / "notes.txt")
    with pytest.raises(DatasetError, match=r"notes\.txt: its name does not end in"):
        rows_of(tmp_path / "rows")


def test_what_save_to_disk_wrote_is_read_as_datasets_reads_it(tmp_path):
    rows = [{"id": i, "prompt": f"p{i}", "meta": {"tags": ["x"]}} for i in range(5)]
    whole = datasets.Dataset.from_list(rows)
    whole.save_to_disk(tmp_path / "one")
    assert rows_of(tmp_path / "one") == rows_of(f"hf:{tmp_path / 'one'}") == rows
    chosen = whole.select([3, 1]).shuffle(seed=1)
    chosen.save_to_disk(tmp_path / "chosen", num_shards=2)
    assert rows_of(tmp_path / "chosen") == list(datasets.load_from_disk(str(tmp_path / "chosen")))
    datasets.DatasetDict(train=whole, test=chosen).save_to_disk(tmp_path / "splits")
    assert rows_of(tmp_path / "splits") == rows
    assert rows_of(tmp_path / "splits", split="test") == list(chosen)
    with pytest.raises(DatasetError, match=r"has no split 'dev' \(its splits: train, test\); name one with --split"):
        rows_of(tmp_path / "splits", split="dev")


def test_a_saved_dataset_without_splits_refuses_one_and_a_configuration(tmp_path):
    datasets.Dataset.from_dict({"prompt": ["a"]}).save_to_disk(tmp_path / "one")
    with pytest.raises(DatasetError, match="--config is for datasets of the hub"):
        rows_of(tmp_path / "one", config="en")
    with pytest.raises(DatasetError, match="has no splits; leave out --split"):
        rows_of(tmp_path / "one", split="test")


def test_images_come_in_as_the_bytes_that_they_are(tmp_path):
    picture = io.BytesIO()
    PIL.Image.new("RGB", (1, 1)).save(picture, "png")
    rows = {"prompt": ["a"], "image": [{"bytes": picture.getvalue(), "path": None}]}
    features = datasets.Features(prompt=datasets.Value("string"), image=datasets.Image())
    datasets.Dataset.from_dict(rows, features).save_to_disk(tmp_path / "pictures")
    (row,) = rows_of(tmp_path / "pictures")
    assert row["image"]["bytes"].startswith("iVBORw0KGgo")


def test_a_pattern_is_the_files_that_it_stands_for_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i in (2, 1, 3):
        (tmp_path / f"rows-{i}.jsonl").write_text(json.dumps({"prompt": f"p{i}"}) + "\n")
    assert [row["prompt"] for row in read("rows-*.jsonl")] == ["p1", "p2", "p3"]
    assert [row["prompt"] for row in read("rows-[12].jsonl")] == ["p1", "p2"]
    assert next(placed_rows(DatasetSource("rows-?.jsonl")))[0] == "rows-1.jsonl, line 1"
    (tmp_path / "rows-[x].jsonl").write_text('{"prompt": "itself"}\n')
    assert read("rows-[x].jsonl") == [{"prompt": "itself"}]
    with pytest.raises(DatasetError, match="there is no such file, and none that is like this pattern"):
        read("nothing-*.jsonl")
    (tmp_path / "rows-4.jsonl").mkdir()
    with pytest.raises(DatasetError, match=r"rows-4\.jsonl is a folder; write a pattern of files alone"):
        read("rows-?.jsonl")


def test_a_name_that_no_file_can_have_is_refused():
    with pytest.raises(DatasetError, match=r"cannot be read \(File name too long\)"):
        read("a" * 300)


def test_a_pipe_is_read_as_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    writer = threading.Thread(target=(tmp_path / "pipe.jsonl").write_text, args=('{"prompt": "a"}\n',), daemon=True)
    writer.start()
    assert read(tmp_path / "pipe.jsonl") == [{"prompt": "a"}]
    writer.join(5)
