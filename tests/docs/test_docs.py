"""Every command and query that the documentation shows is run; what it says about itself holds."""

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import sqlalchemy as sa
from transformers import AutoModelForCausalLM, AutoTokenizer

import db.results
from db.datasets import DatasetSource, open_dataset
from db.results import OWN_COLUMNS
from models.registry import registry_of
from models.spec import SamplingParams
from tests.docs import shell
from tests.docs.conftest import lines_of
from tests.docs.pages import LANGUAGES, blocks, pages
from tests.service.fake_engine import REFUSE
from tests.service.test_shards import shard_ids_of
from worker.settings import ENV_PREFIX, Settings

RUN = {
    "README.md": "folder",
    "adapters.md": "folder",
    "quickstart.md": "folder",
    "datasets.md": "folder",
    "training.md": "folder",
    "deploy.md": "shared",
    "report.md": "folder",
    "contributing.md": "folder",
}
"""Pages with commands, and the working folder that each needs."""


def shortened(text):
    """The same commands with fewer tokens, for tiny models that never end by themselves."""
    return re.sub(r"(genarm run|genarm job submit) (\S+)", r"\1 \2 --max-new-tokens 4", text)


def succeed(done):
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def block_of(page, language):
    """The one block of a language on a page."""
    (block,) = (block for block in blocks(language) if Path(block.page).name == page)
    return block


def test_every_block_says_what_it_is_and_no_command_hides_in_another():
    for block in blocks():
        assert block.language.split()[0] in LANGUAGES | {"indented"}, block
        if block.language in ("indented", "text"):
            assert not re.search(r"^(genarm|make|docker|pip|SELECT|sqlite3)\b", block.text, re.MULTILINE), block
    assert {Path(block.page).name for block in blocks("sh")} == set(RUN)


def test_commands_of_the_readme_and_the_quick_start(folder):
    text = lines_of(blocks("sh"), "README.md") + lines_of(blocks("sh"), "quickstart.md")
    succeed(shell.run(shortened(text), folder))
    rows = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [1]
    assert (folder / "out.parquet").stat().st_size > 0
    assert "positive" in (folder / "out.csv").read_text()


@pytest.mark.parametrize("page", sorted(set(RUN) - {"README.md", "quickstart.md"}))
def test_commands_of_the_other_pages(request, page):
    folder = request.getfixturevalue(RUN[page])
    succeed(shell.run(shortened(lines_of(blocks("sh"), page)), folder))


@pytest.fixture
def results_ledger(ledger, submit, run_shards):
    """A ledger with a finished job; some rows failed."""
    job_id = submit("one", "two", REFUSE, arms=[{"name": "positive", "ref": "x"}])
    run_shards(*shard_ids_of(ledger))
    return ledger, job_id


def test_every_query_runs_on_both_databases_and_finds_something(results_ledger):
    ledger, job_id = results_ledger
    queries = [
        query
        for block in blocks("sql")
        if Path(block.page).name != "sql.md"  # tests/results runs those
        for query in block.text.split(";")
        if query.strip()
    ]
    assert queries
    for query in queries:
        with ledger.connect() as connection:
            assert connection.execute(sa.text(query.replace("job-…", job_id))).all(), query


@pytest.mark.parametrize("prompt", ["as shown", REFUSE])
def test_the_rows_shown_go_in_and_come_out_like_that(ledger, submit, run_shards, tmp_path, prompt):
    page = Path("docs/datasets.md").read_text()
    given, shown = (json.loads(block.text) for block in blocks("json") if Path(block.page).name == "datasets.md")
    if prompt == REFUSE:
        given |= {"prompt": REFUSE}
    (tmp_path / "rows.jsonl").write_text(json.dumps(given))
    (row,) = open_dataset(DatasetSource(str(tmp_path / "rows.jsonl")))
    job_id = submit(row.row, arms=[{"name": name, "ref": "x"} for name in given["weights"]])
    run_shards(*shard_ids_of(ledger))
    (out,) = db.results.export_rows(ledger, job_id)
    passed_on = list(shown)[list(shown).index("error") + 1 :]
    if prompt == REFUSE:
        assert list(out) == ["id", "sample", "error", *passed_on]
        assert out["error"].keys() == {"code", "message"}
        return
    assert list(out) == list(shown)
    for name in ("id", "sample", "finish_reason", "error", *passed_on):
        assert out[name] == shown[name], name
    assert shown["rewards"] == {name: sum(values) for name, values in shown["token_rewards"].items()}
    per_token = [shown["logprobs"], shown["base_logprobs"], *shown["token_rewards"].values()]
    assert {len(values) for values in per_token} == {len(shown["tokens"])}
    for name in (*SamplingParams.model_fields, *OWN_COLUMNS):
        assert f"`{name}`" in page or f'"{name}"' in page, name


def test_the_python_shown_polls_a_job_until_it_has_ended(ledger, submit, run_shards, capsys):
    block = block_of("datasets.md", "python")
    url = ledger.url.render_as_string(hide_password=False)
    job_id = submit("one", REFUSE, "three")
    left = shard_ids_of(ledger)
    waits = []

    def sleep(seconds):
        waits.append(seconds)
        run_shards(left.pop(0))

    text = block.text.replace("sqlite:///.genarm/genarm.db", url).replace("job-…", job_id)
    exec(text.replace("time.sleep", "sleep"), {"sleep": sleep})
    assert (waits, left) == ([5, 5], [])
    shown = capsys.readouterr().out
    assert "eno" in shown
    assert "eerht" in shown


def test_the_python_shown_merges_an_adapter(folder, monkeypatch):
    block = block_of("adapters.md", "python")
    monkeypatch.chdir(folder)
    (folder / "adapter").symlink_to(folder / "examples" / "arms" / "positive")
    exec(block.text, {})
    assert AutoModelForCausalLM.from_pretrained("merged").config.vocab_size == len(
        AutoTokenizer.from_pretrained("merged")
    )


def test_every_registry_shown_is_one(tmp_path):
    for block in blocks("toml"):
        tomllib.loads(block.text)
        (tmp_path / "models.toml").write_text(block.text)
        assert registry_of(tmp_path).models


def test_every_setting_and_file_that_is_named_exists():
    known = {f"{ENV_PREFIX}{name.upper()}" for name in Settings.model_fields}
    for page in pages():
        text = page.read_text()
        assert set(re.findall(r"\bGENARM_[A-Z_]+\b", text)) <= known, page
        for name in re.findall(r"`((?:tests|examples|benchmarks|monitoring|docs)/[\w./-]*)`", text):
            assert Path(name).exists(), (page, name)


def test_the_limits_in_the_documentation_are_the_settings():
    text = Path("docs/security.md").read_text()
    for name, shown in re.findall(r"\| `GENARM_(MAX_\w+)` \| ([\d,]+(?: MiB)?) \|", text):
        number, _, unit = shown.replace(",", "").partition(" ")
        assert Settings.model_fields[name.lower()].default == int(number) * (2**20 if unit else 1), name


def test_the_site_builds_without_a_warning_and_names_every_command_and_setting(tmp_path):
    done = subprocess.run(
        [shutil.which("mkdocs") or ".venv/bin/mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": ".", "NO_MKDOCS_2_WARNING": "1", "LANG": "C.UTF-8"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    commands, settings = ((tmp_path / page / "index.html").read_text() for page in ("cli", "settings"))
    assert all(f"GENARM_{name.upper()}" in settings for name in Settings.model_fields)
    assert "genarm job submit prompts.jsonl --base" in commands
    assert "--samples" in commands
