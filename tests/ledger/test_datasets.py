"""Files in and out."""

import json

import pytest
import sqlalchemy as sa

from db import jobs
from db.datasets import Columns, DatasetSource, open_dataset
from db.errors import DatasetError
from db.tables import requests


def read(path, columns=None):
    return [row.row for row in open_dataset(DatasetSource(str(path), columns or Columns()))]


def test_jsonl_with_bom_crlf_and_blank_lines(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes('\ufeff{"prompt": "naïve"}\r\n\r\n{"id": 7, "prompt": "b"}'.encode())
    assert read(path) == [{"prompt": "naïve"}, {"id": 7, "prompt": "b"}]
    assert [row.custom_id for row in open_dataset(DatasetSource(str(path)))] == [None, "7"]


def test_an_id_that_no_database_can_hold_is_stored_readably(ledger, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": "a\\u0000b\\ud800c", "prompt": "p"}\n')
    job = jobs.submit(ledger, jobs.NewJob(spec={}, samples=1), open_dataset(DatasetSource(str(path))))
    with ledger.connect() as connection:
        assert connection.execute(sa.select(requests.c.custom_id)).scalars().all() == ["a\ufffdb\ufffdc"]
    assert job.total_rows == 1


def test_csv_with_quotes_and_newlines(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('question,label\n"two\nlines, ""quoted""",x\n')
    assert read(path, Columns(prompt="question")) == [{"prompt": 'two\nlines, "quoted"', "label": "x"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", "has no rows"),
        ("a.jsonl", '{"prompt": "x"}\n{"prompt": "tru', "line 2: is not JSON"),
        ("a.jsonl", '{"prompt": NaN}', "has no column 'prompt' or 'messages'"),
        ("a.jsonl", "[1]", "line 1: is not a JSON object"),
        ("a.jsonl", '{"text": "x", "label": 1}', "its columns: text, label"),
        ("a.csv", "prompt\na,b\n", "line 2: has more fields"),
        ("a.csv", "prompt\n", "has no rows"),
        ("a.parquet", "no parquet", "cannot be read as Parquet .*not a parquet file"),
        ("a.parquet.gz", "x", "Parquet is compressed inside; give a file that ends in .parquet"),
        ("a.txt", "x", "say --format"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_place(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DatasetError, match=message):
        read(tmp_path / name)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DatasetError, match="no such file"):
        read(tmp_path / "none.jsonl")


def test_a_row_without_a_prompt_passes_beside_others(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [{"x": 1}, {"prompt": 3}, {"prompt": "a"}]))
    assert len(read(path)) == 3
