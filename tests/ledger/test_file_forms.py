"""Text files in the forms that other tools give them, beside what pandas and Python make of them."""

import bz2
import csv
import gzip
import io
import json
import lzma
import zipfile

import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pytest

from db.datasets import DatasetSource, placed_rows
from db.datasets.streams import BUFFER_BYTES
from db.errors import DatasetError
from tests.ledger.test_inputs import read

ROWS = [
    {"id": 2**63 + 1, "prompt": 'naïve "漢字" 🎉\n\\', "meta": {"tags": ["[", "]", "{"], "n": -0.5e-3}},
    {"id": "b", "prompt": "", "meta": None},
    {"id": None, "prompt": "c" * 200, "meta": {}},
]
JSON_FORMS = {
    "array on one line": json.dumps(ROWS),
    "array, as json.tool writes it": json.dumps(ROWS, indent=4),
    "array with CRLF and space around": " \r\n" + json.dumps(ROWS, indent=1).replace("\n", "\r\n") + "\r\n\r\n",
    "array, a row per line": "[\n" + ",\n".join(map(json.dumps, ROWS)) + "\n]\n",
    "objects over several lines": "\n".join(json.dumps(row, indent=2) for row in ROWS),
    "objects without anything between them": "".join(map(json.dumps, ROWS)),
    "lines that end in CR": "\r".join(map(json.dumps, ROWS)) + "\r",
    "two arrays": json.dumps(ROWS[:1]) + "\n" + json.dumps(ROWS[1:]),
    "lines": "\n\n".join(map(json.dumps, ROWS)),
    "unescaped": json.dumps(ROWS, ensure_ascii=False, separators=(",", ":")),
}


def rows_of(path, **options):
    return [row for _, row in placed_rows(DatasetSource(str(path), **options))]


@pytest.mark.parametrize("form", JSON_FORMS)
@pytest.mark.parametrize("buffer", [5, 64, BUFFER_BYTES])
def test_json_is_read_in_all_of_its_forms(tmp_path, monkeypatch, form, buffer):
    monkeypatch.setattr("db.datasets.streams.BUFFER_BYTES", buffer)
    monkeypatch.setattr("db.datasets.json_rows.FIRST_PIECE", 7)
    for mark in ("", "\ufeff"):
        (tmp_path / "rows.json").write_bytes((mark + JSON_FORMS[form]).encode())
        assert rows_of(tmp_path / "rows.json") == ROWS


def test_json_of_pandas_comes_in_as_it_was(tmp_path):
    frame = pd.DataFrame({"id": [1, 2**60], "prompt": ["a", "b"], "score": [0.25, float("nan")]})
    frame.to_json(tmp_path / "records.json", orient="records")
    frame.to_json(tmp_path / "lines.jsonl", orient="records", lines=True)
    expected = [{"id": 1, "prompt": "a", "score": 0.25}, {"id": 2**60, "prompt": "b", "score": None}]
    assert rows_of(tmp_path / "records.json") == rows_of(tmp_path / "lines.jsonl") == expected


def test_places_in_an_array_are_lines(tmp_path):
    (tmp_path / "rows.json").write_text('[\n\n{"prompt":\n"a"}, {"prompt": "b"},\n{"prompt": "c"}]')
    assert [place for place, _ in placed_rows(DatasetSource(str(tmp_path / "rows.json")))] == [
        "line 3", "line 4", "line 5",
    ]  # fmt: skip


def test_a_long_array_is_read_in_bounded_memory_and_without_reading_it_over_and_over(tmp_path):
    path = tmp_path / "rows.json"
    count = 30_000
    path.write_text("[" + ", ".join(f'{{"prompt": "{i:01000}"}}' for i in range(count)) + "]")
    found = placed_rows(DatasetSource(str(path)))
    assert sum(1 for _ in found) == count


def test_a_value_longer_than_a_piece_is_read(tmp_path):
    row = {"prompt": "ä\n" * (2 * BUFFER_BYTES), "more": ["x"] * 1000}
    for form in ([row], row):
        (tmp_path / "rows.json").write_text(json.dumps(form, indent=1))
        assert rows_of(tmp_path / "rows.json") == [row]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"prompt": "a"},\n {"prompt": "b"', "line 2: is not JSON"),
        ('[{"prompt": "a"},\n {"prompt": "b"}', "line 2: is not JSON .Expecting ',' or '\\]'"),
        ('[{"prompt": "a"},\n]', "line 2: is not JSON"),
        ('[{"prompt": "a"}\n {"prompt": "b"}]', "line 2: is not JSON .Expecting ','"),
        ('[{"prompt": "a"},\n 7]', "line 2: is not a JSON object"),
        ('[[{"prompt": "a"}]]', "line 1: is not a JSON object"),
        ('[{"prompt": "a"}]\n}', "line 2: is not JSON"),
        ('{"prompt":\n"a",\n"x": tru}' + " " * 40, "line 3: is not JSON .Expecting value"),
        ('{"prompt":\n"a\nb"}' + " " * 40, "line 2: is not JSON .Invalid control character"),
        ('{"prompt": "a"},\n{"prompt": "b"}', "line 1: is not JSON"),
        ('"prompt"', "line 1: is not a JSON object"),
        ("prompt,label\na,b\n", "line 1: is not JSON"),
        ('{"prompt": "a", "prompt": "b"}', "line 1: is not JSON .an object has two fields named 'prompt'"),
        ('{"prompt": "a"}\n{"prompt": "a", "x": {"y": 1, "y": 1}}', "line 2: .*two fields named 'y'"),
        ("[" * 100_000, "line 1: is not JSON"),
        ("[]", "has no rows"),
    ],
)
def test_json_that_is_broken_is_refused_with_the_line(tmp_path, content, message):
    (tmp_path / "rows.json").write_text(content)
    with pytest.raises(DatasetError, match=message):
        read(tmp_path / "rows.json")


def test_a_value_without_an_end_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("db.datasets.json_rows.LONGEST_LINE_BYTES", 1 << 20)
    (tmp_path / "rows.json").write_text('[{"prompt": "' + "a" * (5 << 20))
    with pytest.raises(DatasetError, match="line 1: begins a value longer than 1 MiB"):
        read(tmp_path / "rows.json")


@pytest.mark.parametrize("form", [json.dumps, lambda row: json.dumps([row], indent=1)])
def test_nan_and_infinities_are_null_and_never_a_default(tmp_path, form):
    nan, endless = float("nan"), float("inf")
    row = {"prompt": "a", "score": nan, "all": [1.5, -endless, {"x": endless}], "weights": {"a": nan, "b": 1.0}}
    (tmp_path / "rows.jsonl").write_text(form(row | {"sampling": nan, "text": "NaN"}))
    (found,) = rows_of(tmp_path / "rows.jsonl")
    assert found["score"] is found["sampling"] is None
    assert found["all"] == [1.5, None, {"x": None}]
    assert found["weights"] == {"a": "nan", "b": 1.0}  # null would mean the job's own weight
    assert found["text"] == "NaN"


FRAME = pd.DataFrame({"id": ["1", "2"], "prompt": ['say "hi",\r\nplease; a\ttab | bar', "café"], "price": ["0,5", ""]})


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_csv_is_read_as_pandas_reads_it(tmp_path, separator, ends):
    text = io.StringIO()
    FRAME.to_csv(text, index=False, sep=separator, lineterminator=ends)
    path = tmp_path / "rows.csv"
    path.write_bytes(b"\xef\xbb\xbf" + text.getvalue().encode())
    as_pandas = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False)
    assert rows_of(path) == as_pandas.to_dict("records") == FRAME.to_dict("records")


def test_the_separator_of_a_tsv_is_the_tab_and_excel_may_say_it(tmp_path):
    (tmp_path / "rows.tsv").write_text("id\tprompt, text\n1\ta\n")
    assert rows_of(tmp_path / "rows.tsv") == [{"id": "1", "prompt, text": "a"}]
    (tmp_path / "rows.csv").write_bytes(b"sep=;\r\n\r\nid;prompt, text\r\n1;a\r\n2;\r\n3;b;c\r\n")
    rows = placed_rows(DatasetSource(str(tmp_path / "rows.csv")))
    assert next(rows) == ("line 4", {"id": "1", "prompt, text": "a"})
    assert next(rows) == ("line 5", {"id": "2", "prompt, text": ""})
    with pytest.raises(DatasetError, match=r"line 6: has more fields than the header \(3, not 2\)"):
        next(rows)


def test_the_separator_is_seen_behind_a_name_of_two_lines(tmp_path):
    (tmp_path / "rows.csv").write_text('"a, or\nb";prompt\n1;c\n')
    assert list(placed_rows(DatasetSource(str(tmp_path / "rows.csv")))) == [
        ("line 3", {"a, or\nb": "1", "prompt": "c"})
    ]


@pytest.mark.parametrize("content", ["NaN", "[" * 500 + "]" * 500])
def test_what_is_nested_deeply_is_refused_in_a_line(tmp_path, content):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "x": [NaN, ' + "[" * 500 + content + "]" * 500 + "]}")
    with pytest.raises(DatasetError, match="line 1: is n"):
        read(tmp_path / "rows.jsonl")


def test_columns_without_a_name_at_the_end_are_empty_or_refused(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b"\r\nid,prompt,,\r\n1,hello,,\r\n2,short\r\n,,,\r\n")
    rows = list(placed_rows(DatasetSource(str(path))))
    assert rows[0] == ("line 3", {"id": "1", "prompt": "hello"})
    assert [row["id"] for _, row in rows] == ["1", "2", ""]
    path.write_text("id,prompt,,\n1,hello,,5\n")
    with pytest.raises(DatasetError, match="line 2: has more fields"):
        read(path)
    path.write_text(",,\na,b,\n")
    with pytest.raises(DatasetError, match="line 1: no column has a name"):
        read(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"id;prompt\tlabel\n1;a\tb\n", "its header has semicolons and tabs and no comma"),
        (
            "a.csv",
            b"id, prompt\n1, hello\n",
            "has a column ' prompt', which would be called 'prompt'",
        ),
        ("a.csv", b"prompt , id \na,b\n", "has a column 'prompt ', "),
        ("a.csv", b"prompt, id\na,b\n", "has a column ' id', "),
        ("a.jsonl", b'{"prompt": "a", "sampling ": {}}', "has a column 'sampling ', "),
        ("a.csv", b"text, other\na,b\n", "its columns: text, ' other'"),
        ("a.csv", b'prompt\n"say \\"hi\\""\n', "line 2: is not CSV"),
        ("a.csv", "prompt\na\n".encode("utf-16"), "is UTF-16; save it as UTF-8"),
        ("a.csv", "prompt\na\n".encode("utf-16-le"), "has NUL in its first line, so that it is UTF-16"),
        ("a.jsonl", json.dumps({"prompt": "a"}).encode("utf-32-be"), "has NUL in its first line"),
        ("a.csv", "prompt\ncafé\n".encode("cp1252"), "line 2: is not UTF-8"),
        ("a.jsonl", bz2.compress(b'{"prompt": "a"}'), "is compressed by bzip2; unpack it"),
        ("a.jsonl", lzma.compress(b'{"prompt": "a"}'), "is compressed by xz; unpack it"),
        ("a.jsonl", gzip.compress(bz2.compress(b'{"prompt": "a"}')), "is compressed by bzip2; unpack it"),
        ("a.csv", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500), "is an Excel workbook; save the sheet as CSV"),
        ("a.jsonl", b'{"prompt": [1]}\n{"prompt": 5}', "has no column 'prompt' or 'messages' whose values are text"),
    ],
)
def test_what_cannot_be_read_as_it_is_meant_is_refused_with_the_remedy(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        read(tmp_path / name)


def test_messages_that_pandas_wrote_as_python_are_refused_and_as_json_are_read(tmp_path):
    messages = [{"role": "user", "content": "it's"}]
    pd.DataFrame({"messages": [messages]}).to_csv(tmp_path / "python.csv", index=False)
    with pytest.raises(DatasetError, match=r"lists of messages \(in CSV as JSON, as json.dumps writes it\)"):
        read(tmp_path / "python.csv")
    with (tmp_path / "json.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["messages"], [json.dumps(messages)]])
    assert read(tmp_path / "json.csv") == [{"messages": messages}]


def test_a_file_whose_name_lies_is_read_or_named(tmp_path):
    (tmp_path / "zip.csv").write_bytes(b"")
    with zipfile.ZipFile(tmp_path / "zip.csv", "w") as archive:
        archive.writestr("rows.csv", "prompt\na\n")
    with pytest.raises(DatasetError, match=r"is a zip archive, as an \.xlsx workbook is: unpack it"):
        read(tmp_path / "zip.csv")
    pd.DataFrame({"prompt": ["a"]}).to_parquet(tmp_path / "parquet.csv")
    with pytest.raises(DatasetError, match="is Parquet; give --format parquet"):
        read(tmp_path / "parquet.csv")
    assert read(tmp_path / "parquet.csv", file_format="parquet") == [{"prompt": "a"}]
    pyarrow.feather.write_feather(pa.table({"prompt": ["a"]}), tmp_path / "arrow.jsonl")
    with pytest.raises(DatasetError, match="is an Arrow file"):
        read(tmp_path / "arrow.jsonl")
    (tmp_path / "gzip.csv").write_bytes(gzip.compress(b"prompt\na\n"))
    assert read(tmp_path / "gzip.csv") == [{"prompt": "a"}]
