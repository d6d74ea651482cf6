"""Parquet files and Hugging Face datasets."""

from datetime import UTC, datetime
from decimal import Decimal
from unittest.mock import Mock

import datasets
import huggingface_hub
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from db.datasets import DatasetSource, open_dataset, placed_rows
from db.errors import DatasetError
from tests.ledger.test_inputs import CHAT, read


def test_parquet_with_nested_columns_times_and_gaps(tmp_path):
    path = tmp_path / "rows.parquet"
    frame = pd.DataFrame(
        {
            "prompt": ["a", "b"],
            "meta": [{"tags": ["x", "y"], "score": 0.5}, {"tags": [], "score": None}],
            "when": [datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)] * 2,
            "ratio": [float("nan"), 2.5],
            "price": [Decimal("1.50"), None],
            "raw": [b"text", b"\xff"],
            "weights": [{"helpful": 1.0, "harmless": None}, {"helpful": None, "harmless": 2.0}],
        }
    )
    frame.to_parquet(path)
    first, second = read(path)
    assert first["meta"] == {"tags": ["x", "y"], "score": 0.5}
    assert first["when"] == "2026-01-02T03:04:05+00:00"
    assert (first["ratio"], second["ratio"]) == (None, 2.5)
    assert (first["price"], first["raw"], second["raw"]) == (1.5, "text", "/w==")
    assert (first["weights"], second["weights"]) == ({"helpful": 1.0}, {"harmless": 2.0})


def test_parquet_may_hold_messages(tmp_path):
    path = tmp_path / "chats.parquet"
    reply = {"role": "assistant", "content": "D"}
    struct = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string()), ("name", pa.string())]))
    pq.write_table(pa.table({"messages": pa.array([[CHAT], [CHAT, reply], None], struct)}), path)
    assert read(path) == [{"messages": [CHAT]}, {"messages": [CHAT, reply]}, {"messages": None}]


@pytest.mark.parametrize("row_group_rows", [500, 40_000], ids=["many row groups", "one row group"])
def test_parquet_is_read_in_bounded_memory(tmp_path, row_group_rows):
    path = tmp_path / "rows.parquet"
    prompts = pa.array([f"{i:1000}" for i in range(40_000)])
    pq.write_table(pa.table({"prompt": prompts}), path, row_group_rows, use_dictionary=False, compression="none")
    del prompts
    assert path.stat().st_size > 40_000_000
    before, most = pa.total_allocated_bytes(), 0
    for place, _ in placed_rows(DatasetSource(str(path))):
        if place.endswith("00"):
            most = max(most, pa.total_allocated_bytes() - before)
    assert place == "row 40000"
    assert most < 8_000_000


BROKEN = {
    "dates": pa.array([0, 1, 2**31 - 1], pa.int32()).cast(pa.date32()),
    "times": pa.array([0, 1, 2**62], pa.int64()).cast(pa.timestamp("us")),
    "texts": pa.Array.from_buffers(pa.string(), 3, pa.array([b"a", b"b", b"\xff"]).buffers()),
}


@pytest.mark.parametrize("column", BROKEN)
def test_a_value_that_python_lacks_is_named_by_the_row_before_it(tmp_path, column):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"prompt": ["a", "b", "c"], "column": BROKEN[column]}), path)
    with pytest.raises(DatasetError, match=r"rows\.parquet, after row 2: cannot be read as Parquet \([^\n]+\)$"):
        read(path)


def test_parquet_that_is_empty_broken_or_not_to_be_read_is_named(tmp_path, monkeypatch):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), path)
    with pytest.raises(DatasetError, match="has no rows"):
        read(path)
    path.write_bytes(b"")
    with pytest.raises(DatasetError, match=r"rows\.parquet: cannot be read as Parquet"):
        read(path)
    pq.write_table(pa.table({"prompt": [f"{i:100}" for i in range(20_000)]}), path, 5000, use_dictionary=False)
    intact = path.read_bytes()
    path.write_bytes(intact[: len(intact) // 2] + bytes(10_000) + intact[len(intact) // 2 + 10_000 :])
    with pytest.raises(DatasetError, match=r"rows\.parquet, after row \d+: cannot be read as Parquet \([^\n]+\)$"):
        read(path)
    monkeypatch.setattr(pq, "ParquetFile", Mock(side_effect=PermissionError(13, "Permission denied")))
    with pytest.raises(DatasetError, match=r"rows\.parquet: cannot be read as Parquet \(Permission denied\)"):
        read(path)


def test_a_folder_is_read_as_a_hugging_face_dataset(tmp_path):
    for split in ("train", "test"):
        pd.DataFrame({"text": [f"{split} {i}" for i in range(3)]}).to_parquet(tmp_path / f"{split}.parquet")
    assert [row["prompt"] for row in read(tmp_path, prompt="text")] == ["train 0", "train 1", "train 2"]
    assert read(tmp_path, prompt="text", split="test")[0] == {"prompt": "test 0"}
    with pytest.raises(DatasetError, match=r"no split 'dev' \(its splits: .*test.*--split"):
        read(tmp_path, split="dev")


def test_a_configuration_is_chosen_by_its_name(tmp_path):
    files = {"english": "Hello", "german": "Hallo"}
    for name, prompt in files.items():
        pd.DataFrame({"prompt": [prompt]}).to_parquet(tmp_path / f"{name}.parquet")
    configs = "".join(f"- config_name: {name}\n  data_files: {name}.parquet\n" for name in files)
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    assert read(tmp_path, config="german") == [{"prompt": "Hallo"}]
    with pytest.raises(DatasetError, match=r"cannot be read as a Hugging Face dataset \(.*english.*\)$"):
        read(tmp_path)
    with pytest.raises(DatasetError, match=r"cannot be read as a Hugging Face dataset \(.*french.*\)$"):
        read(tmp_path, config="french")


@pytest.mark.parametrize(
    ("name", "config", "split"),
    [("owner/name", None, None), ("owner/name-2.5", "english", None), ("hf:name", "english", "test")],
)
def test_a_dataset_of_the_hub_is_streamed(monkeypatch, name, config, split):
    splits = {chosen: [{"prompt": f"{chosen} {i}"} for i in range(3)] for chosen in ("train", "test")}
    load = Mock(return_value=splits)
    monkeypatch.setattr(datasets, "load_dataset", load)
    rows = list(open_dataset(DatasetSource(name, config=config, split=split)))
    load.assert_called_once_with(name.removeprefix("hf:"), config, streaming=True)
    assert [row.row["prompt"] for row in rows] == [f"{split or 'train'} {i}" for i in range(3)]
    assert rows[2].place == f"{name.removeprefix('hf:')}, row 3"
    load.side_effect = ValueError("the hub says\n" * 100)
    with pytest.raises(DatasetError) as refused:
        read(name)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("name", ["data/typo.txt", "data/typo", "./typo", "../typo", "typo", "/typo/at"])
def test_what_looks_like_a_file_that_is_not_there_is_not_looked_for_on_the_hub(tmp_path, monkeypatch, name):
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", Mock(side_effect=AssertionError("asked the hub")))
    with pytest.raises(DatasetError, match="there is no such file; a Hugging Face dataset is given as hf:NAME"):
        read(name)


def test_hf_means_a_folder_or_the_hub_and_never_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n')
    with pytest.raises(DatasetError, match=r"rows\.jsonl: cannot be read as a Hugging Face dataset"):
        read("hf:rows.jsonl")


@pytest.mark.parametrize("name", ["hf:nothing/here", "nothing/here"])
def test_a_dataset_that_the_hub_lacks_is_named(name, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DatasetError, match="nothing/here: cannot be read as a Hugging Face dataset"):
        read(name)
