"""Chat templates as a job asks for them: by name, with variables, and with a date that stays."""

import datetime
import json

import pytest
from transformers import PreTrainedTokenizerFast

from tests.cli.conftest import facts
from tests.tiny_models import TEMPLATE, make_model
from worker.cli.errors import Exit

DATED = "{{ strftime_now('%d %b %Y') }}{% if enable_thinking %}think{% endif %}" + TEMPLATE


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A base with a dated template that reads `enable_thinking`, and one with several templates by name."""
    folder = tmp_path_factory.mktemp("templates")
    make_model(folder / "dated", template=DATED)
    make_model(folder / "named", template=None)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "named")
    tokenizer.chat_template = {"rag": "RAG", "plain": TEMPLATE}
    tokenizer.save_pretrained(folder / "named")
    (folder / "rows.jsonl").write_text('{"prompt": "hi"}\n')
    return folder


@pytest.fixture
def submit(genarm_here, folder):
    """Submit a job with a base of the folder."""
    return lambda base, *options: genarm_here(
        "job", "submit", folder / "rows.jsonl", "--base", folder / base, *options, "--json"
    )


def spec_of(genarm_here, submitted):
    return facts(genarm_here("job", "show", facts(submitted)["id"], "--json"))["spec"]


def test_a_dated_job_keeps_the_day_of_its_submission(genarm_here, submit):
    before = datetime.datetime.now(datetime.UTC).date()
    submitted = submit("dated", "--key", "k")
    days = {str(before), str(datetime.datetime.now(datetime.UTC).date())}
    assert spec_of(genarm_here, submitted)["date"] in days
    assert "date in chat templates" in genarm_here("job", "show", facts(submitted)["id"]).stdout


def test_the_same_key_on_another_day_is_the_same_job(genarm_here, submit, monkeypatch):
    first = facts(submit("dated", "--key", "k"))["id"]
    monkeypatch.setattr("models.templates.today", lambda: datetime.date(2030, 1, 2))
    assert facts(submit("dated", "--key", "k"))["id"] == first
    assert spec_of(genarm_here, submit("dated"))["date"] == "2030-01-02"
    assert submit("dated", "--key", "k", "--date", "2030-01-02").exit_code == Exit.USAGE


def test_a_date_and_variables_are_stored_and_shown(genarm_here, submit):
    submitted = submit("dated", "--date", "2024-02-29", "--chat-template-kwargs", '{"enable_thinking": true}')
    spec = spec_of(genarm_here, submitted)
    assert (spec["date"], spec["chat_template_kwargs"]) == ("2024-02-29", {"enable_thinking": True})
    shown = genarm_here("job", "show", facts(submitted)["id"]).stdout
    assert "2024-02-29" in shown
    assert '{"enable_thinking": true}' in shown


def test_a_template_by_name(genarm_here, submit):
    assert spec_of(genarm_here, submit("named", "--chat-template", "plain"))["chat_template"] == "plain"
    assert spec_of(genarm_here, submit("named", "--chat-template", "plain"))["date"] is None


@pytest.mark.parametrize(
    ("base", "options", "named"),
    [
        ("named", [], "several chat templates (plain, rag)"),
        ("named", ["--chat-template", "default"], "no chat template named 'default'; it has: plain, rag"),
        ("dated", ["--chat-template", "./nowhere.jinja"], "--chat-template: ./nowhere.jinja cannot be read"),
        ("dated", ["--arm-template", "x"], "--arm-template x: write ARM=FILE, or ARM=NAME"),
        ("dated", ["--chat-template-kwargs", "enable_thinking"], "--chat-template-kwargs: is no JSON"),
        ("dated", ["--chat-template-kwargs", "[1]"], "chat_template_kwargs: "),
        ("dated", ["--chat-template-kwargs", '{"thinking": true}'], "no chat template of this job reads 'thinking'"),
        ("dated", ["--chat-template-kwargs", '{"tools": []}'], "give it as a column of the row"),
        ("dated", ["--date", "29.2.2024"], "date: "),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_stored(genarm_here, submit, base, options, named):
    refused = submit(base, *options)
    assert refused.exit_code != 0
    assert named in " ".join(refused.stderr.split())
    assert "Traceback" not in refused.stderr
    assert not genarm_here("job", "list", "--json").stdout.strip()


def test_rows_bring_variables_and_tools(genarm_here, folder, here):
    rows = [
        {"prompt": "a", "chat_template_kwargs": {"enable_thinking": True}},
        {"prompt": "a", "chat_template_kwargs": {"thinking": True}},
        {"prompt": "a", "tools": [{"name": "f"}]},
        {"prompt": "a", "tools": [], "documents": None},
        {"prompt": "a", "documents": "text"},
    ]
    (here / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = genarm_here(
        "run",
        "rows.jsonl",
        "-o",
        "out.jsonl",
        "--base",
        folder / "dated",
        "--max-new-tokens",
        1,
        "--date",
        "2024-02-29",
    )
    assert done.exit_code == Exit.FAILED_ROWS, done.output
    out = [json.loads(line) for line in (here / "out.jsonl").read_text().splitlines()]
    errors = [row["error"] and row["error"]["message"] for row in out]
    assert errors[0] is None and errors[3] is None
    assert out[0]["prompt_tokens"] == out[3]["prompt_tokens"] + len("think")
    assert "no chat template of this job reads 'thinking'" in errors[1]
    assert "no chat template of this job reads 'tools'" in errors[2]
    assert errors[4].startswith("documents: ")
