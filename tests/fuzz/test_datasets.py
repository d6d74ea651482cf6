"""Datasets in any bytes, and datasets that say a thing in every form that tools give it."""

import csv
import io
import json
import math
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from db.datasets import DatasetSource, open_dataset, placed_rows
from db.datasets.values import as_json, json_row
from db.errors import DatasetError
from models.errors import RowError
from models.spec import GenerationSpec, PromptRow
from tests.fuzz.inputs import any_text, as_bytes, count, files, inputs, junk, samplings

SPEC = GenerationSpec.parse({"base": "tiny"})
text = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x00"), max_size=12)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
objects = st.lists(st.dictionaries(text, plain, max_size=4), min_size=1, max_size=5)
FORMS = [
    lambda rows, indent: "\n".join(json.dumps(row) for row in rows),
    lambda rows, indent: json.dumps(rows, indent=indent),
    lambda rows, indent: json.dumps(rows, indent=indent, ensure_ascii=False).replace("\n", "\r\n"),
    lambda rows, indent: " ".join(json.dumps(row, indent=indent) for row in rows),
    lambda rows, indent: "\r".join(json.dumps(row) for row in rows),
]


def written(folder, name, content):
    path = folder.getbasetemp() / name
    path.write_bytes(content)
    return DatasetSource(str(path))


@inputs(0.05)
@given(rows=objects, form=st.sampled_from(FORMS), indent=st.sampled_from([None, 0, 3]))
def test_json_in_every_form_is_what_python_reads(tmp_path_factory, rows, form, indent):
    count()
    source = written(tmp_path_factory, "forms.json", form(rows, indent).encode())
    found = [row for _, row in placed_rows(source)]
    assert found == [json_row(json.loads(json.dumps(row))) for row in rows]
    assert json.dumps(found, allow_nan=False)


names = st.lists(text.filter(lambda name: name.strip() == name != ""), min_size=2, max_size=4)


@inputs(0.05)
@given(
    header=names.filter(lambda one: len(set(one)) == len(one)),
    cells=st.lists(st.lists(text, min_size=4, max_size=4), min_size=1, max_size=4),
    separator=st.sampled_from(",;\t|"),
    ends=st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_csv_with_every_separator_is_what_was_written(tmp_path_factory, header, cells, separator, ends):
    count()
    file = io.StringIO()
    quoted = csv.writer(file, delimiter=separator, lineterminator=ends, quoting=csv.QUOTE_ALL)
    quoted.writerow(header)
    rows = [row[: len(header)] for row in cells]
    quoted.writerows(rows)
    source = written(tmp_path_factory, "cells.csv", file.getvalue().encode())
    assert [row for _, row in placed_rows(source)] == [dict(zip(header, row, strict=True)) for row in rows]


@inputs(0.05)
@given(
    content=files
    | st.tuples(st.sampled_from(["[", "{", "sep=", '"']), files).map(lambda pair: as_bytes(pair[0]) + pair[1])
)
def test_any_bytes_are_rows_or_one_line_of_error(tmp_path_factory, content):
    count()
    for name in ("bytes.json", "bytes.csv", "bytes.tsv", "bytes.parquet"):
        source = written(tmp_path_factory, name, content)
        try:
            assert all(json.dumps(row.row) for row in open_dataset(source))
        except DatasetError as error:
            assert len(str(error).splitlines()) <= 1


bodies = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(
            ("messages", "prompt", "input", "instructions", "text", "max_tokens", "max_output_tokens"), junk
        ),
        **dict.fromkeys(("stop", "tools", "response_format", "reasoning", "top_k", "n", "best_of"), junk),
    },
)
requests = st.fixed_dictionaries(
    {"custom_id": junk, "body": bodies | samplings},
    optional={
        "url": st.sampled_from(["/v1/chat/completions", "/v1/completions", "/v1/responses"]) | junk,
        "method": junk,
    },
)


@inputs(0.05)
@given(request=requests, samples=st.integers(1, 3))
def test_batch_requests_are_rows_or_one_line_of_error(tmp_path_factory, request, samples):
    count()
    source = written(tmp_path_factory, "requests.jsonl", json.dumps(request).encode())
    try:
        for row in open_dataset(source, samples):
            PromptRow.parse(row.row, 0, SPEC)
    except (DatasetError, RowError) as error:
        assert len(str(error).splitlines()) <= 1
        assert len(str(error)) < 2000


@inputs(0.05)
@given(
    number=st.decimals().filter(lambda number: not number.is_snan()) | st.floats() | st.integers().map(Decimal),
    name=any_text,
)
def test_numbers_keep_their_values(number, name):
    count()
    found = json.loads(json.dumps(as_json({name: number}), allow_nan=False))[str(name)]
    if math.isfinite(number):
        assert Decimal(repr(found) if isinstance(found, float) else found) == Decimal(
            repr(number) if isinstance(number, float) else number
        )
    else:
        assert found is None
