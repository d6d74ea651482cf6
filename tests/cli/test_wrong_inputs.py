"""Commands typed with one thing wrong about INPUT or its columns: one line with the remedy, and nothing stored."""

import gzip
import json
import shlex
import zipfile

import pandas as pd
import pytest

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}


def request(custom_id="a", url="/v1/chat/completions", **body):
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": {**CHAT, **body}}) + "\n"


@pytest.fixture
def files(here):
    """Inputs in the folder that commands run in."""
    contents = {
        "good.jsonl": '{"id": 1, "prompt": "Hi"}\n{"id": 1, "prompt": "Hi"}\n',
        "other.jsonl": '{"text": "Hi", "Prompt": "Hi"}\n',
        "wrapped.json": json.dumps({"version": 1, "data": [{"prompt": "Hi"}]}, indent=1),
        "cut.json": '[{"prompt": "Hi"},\n {"prompt": "H',
        "twice.jsonl": '{"prompt": "Hi"}\n{"prompt": "Hi", "prompt": "Hey"}\n',
        "numbers.jsonl": '{"prompt": 5}\n',
        "space.csv": "id, prompt\n1, Hi\n",
        "python.csv": "messages\n\"[{'role': 'user', 'content': 'Hi'}]\"\n",
        "mixed.csv": "id;prompt\tlabel\n",
        "batch.jsonl": request() + request(),
        "embeddings.jsonl": request(url="/v1/embeddings"),
        "many.jsonl": request(n=3),
        "lengths.jsonl": request(max_tokens=5, max_completion_tokens=6),
    }
    for name, content in contents.items():
        (here / name).write_text(content)
    (here / "utf16.csv").write_text("prompt\nHi\n", encoding="utf-16")
    (here / "latin.csv").write_text("prompt\ncafé\n", encoding="cp1252")
    (here / "broken.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "Hi"}\n' * 9)[:-9])
    pd.DataFrame({"prompt": ["Hi"]}).to_parquet(here / "parquet.csv")
    with zipfile.ZipFile(here / "book.csv", "w") as archive:
        archive.writestr("sheet.xml", "")
    (here / "empty.parquet").mkdir()
    (here / "delta" / "_delta_log").mkdir(parents=True)
    return here


WRONG = [
    ("god.jsonl", "god.jsonl: there is no such file; a Hugging Face dataset is given as hf:NAME"),
    ("'g*d.csv'", "g*d.csv: there is no such file, and none that is like this pattern"),
    (
        "good.jsonl other.jsonl",
        "INPUT is one file, folder or pattern, and here are 2 (the second: other.jsonl); write a",
    ),
    ("good.txt", "good.txt: there is no such file"),
    ("good.jsonl --split train", "good.jsonl: --split and --config are for Hugging Face datasets, and this is a file"),
    ("good.jsonl --format csv", "good.jsonl: begins as JSON does, not as CSV; give --format jsonl"),
    ("other.jsonl", "has no column 'prompt' or 'messages' (its columns: text, Prompt); name one with --prompt-column"),
    ("other.jsonl --prompt-column txt", "has no column 'txt' (its columns: text, Prompt); give --prompt-column one of"),
    ("other.jsonl --prompt-column text --id-column uid", "has no column 'uid' (its columns: text, Prompt); give --id-"),
    (
        "other.jsonl --template '{txt}'",
        "has no row with all of the template's columns 'txt' (its columns: text, Prompt)",
    ),
    (
        "other.jsonl --template '{text'",
        "--template: expected '}' before end of string; a brace that is text is written",
    ),
    ("wrapped.json", "if its rows are in 'data', give that list as a file of its own"),
    ("cut.json", "cut.json, line 2: is not JSON (Unterminated string starting at); a JSON file has an object per line"),
    ("twice.jsonl", "twice.jsonl, line 2: is not JSON (an object has two fields named 'prompt')"),
    ("numbers.jsonl", "has no column 'prompt' or 'messages' whose values are text, or lists of messages"),
    ("space.csv", "has a column ' prompt', which would be called 'prompt' without the space around its name"),
    ("python.csv", "lists of messages (in CSV as JSON, as json.dumps writes it)"),
    ("mixed.csv", "its header has semicolons and tabs and no comma; separate the columns by commas"),
    ("utf16.csv", "utf16.csv: is UTF-16; save it as UTF-8"),
    ("latin.csv", "latin.csv, line 2: is not UTF-8 ("),
    ("broken.jsonl.gz", "get or make the file anew"),
    ("parquet.csv", "parquet.csv: is Parquet; give --format parquet"),
    ("book.csv", "book.csv: is a zip archive, as an .xlsx workbook is: unpack it, or save the sheet as CSV (UTF-8)"),
    ("empty.parquet", "empty.parquet: the folder has no files of data"),
    ("delta", "delta: is a Delta table, some files of which may be old; export it as Parquet or JSONL"),
    (
        "batch.jsonl",
        "batch.jsonl, line 2: the custom_id 'a' is there twice, first in line 1; give each request its own",
    ),
    (
        "embeddings.jsonl",
        "line 1: the request is for '/v1/embeddings', which is no endpoint of genarm (it has: /v1/chat",
    ),
    ("many.jsonl", "many.jsonl, line 1: asks for n = 3, the job makes 1 per row; give it --samples 3"),
    ("lengths.jsonl", "lengths.jsonl, line 1: asks for two lengths, one of them max_completion_tokens = 6; keep one"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[arguments for arguments, _ in WRONG])
def test_what_is_wrong_about_the_input_is_named_with_the_remedy(files, genarm_here, models, arguments, message):
    refused = genarm_here("job", "submit", *shlex.split(arguments), "--base", models / "base")
    assert refused.exit_code == 2, refused.output
    (line,) = [line for line in refused.stderr.splitlines() if line.startswith("Error: ")]
    assert message in line
    assert refused.stdout == ""
    assert genarm_here("job", "list", "--json").stdout == ""


def test_ids_that_openai_cannot_tell_apart_are_refused_before_the_work(files, genarm_here, models):
    refused = genarm_here(
        "run", "good.jsonl", "-o", "out.jsonl", "--output-format", "openai", "--base", models / "base"
    )
    assert refused.exit_code == 2, refused.output
    assert "good.jsonl, line 2: the id '1' is there twice, first in good.jsonl, line 1" in refused.stderr
    assert genarm_here("job", "list", "--json").stdout == ""
