"""The queries of docs/sql.md, as they are written there, on both databases."""

import re
from collections import Counter, defaultdict
from pathlib import Path
from statistics import mean

import pytest
import sqlalchemy as sa

from db.results import export_rows

DOCUMENT = Path("docs/sql.md").read_text()
ROWS = [
    {"id": f"r{i}", "prompt": f"p{i}", "label": "abc"[i % 3], "weights": {"helpful": float(i % 2)}} for i in range(130)
]
FAILING = {4, 121}


def queries(backend):
    """The query under each heading, for one database."""
    found = {}
    for section in DOCUMENT.split("\n## ")[1:]:
        blocks = dict(re.findall(r"```sql ?(\w*)\n(.*?)```", section, re.DOTALL))
        found[section.splitlines()[0]] = blocks.get(backend) or blocks[""]
    return found


TITLES = list(queries("sqlite"))


@pytest.fixture
def ask(ledger, finished):
    """Run the query under a heading; returns its rows, and the job's output rows that succeeded."""

    def ask(title, job=None):
        job = job or finished(ROWS, failing=FAILING)
        query = queries(ledger.dialect.name)[title].replace("JOB", job.id)
        with ledger.connect() as connection:
            rows = connection.execute(sa.text(query.replace(":", r"\:"))).all()
        return rows, [row for row in export_rows(ledger, job.id) if row["error"] is None]

    return ask


def test_there_are_at_least_ten_and_all_have_a_test():
    assert len(TITLES) >= 10
    source = Path(__file__).read_text()
    assert [title for title in TITLES if f'ask("{title}"' not in source] == []


def close(value):
    return pytest.approx(value, abs=1e-4)


def test_progress(ask, submit, fill):
    job = submit(ROWS)
    fill(job, shards_at_most=2, failing={3})
    rows, _ = ask("How far are the jobs, and when will they be done?", job)
    (row,) = rows
    assert (row.job_id, row.status) == (job.id, "in_progress")
    assert (row.completed_rows, row.failed_rows, row.pending_rows) == (31, 1, 98)
    assert float(row.eta_seconds) >= 0


def test_new_rows(ask, submit, fill):
    job = submit(ROWS)
    fill(job, shards_at_most=7)
    rows, _ = ask("What is new since I last looked?", job)
    assert [(row.row_index, row.sample) for row in rows] == [(i, s) for i in range(100, 112) for s in (0, 1)]


def test_new_rows_come_with_all_their_samples(ask, finished):
    job = finished([f"p{i}" for i in range(1102)], samples=3, shard_rows=600)
    rows, _ = ask("What is new since I last looked?", job)
    assert [(row.row_index, row.sample) for row in rows] == [(i, s) for i in range(100, 1100) for s in (0, 1, 2)]


def test_best_of_n(ask):
    rows, done = ask("Which of n completions is the best for each prompt?")
    best = {}
    for row in done:
        if row["id"] not in best or row["rewards"]["helpful"] > best[row["id"]]["rewards"]["helpful"]:
            best[row["id"]] = row
    assert {row.custom_id: row.completion for row in rows} == {key: row["completion"] for key, row in best.items()}


def test_pairs(ask):
    rows, done = ask("Which pairs of completions differ most?")
    by_id = defaultdict(list)
    for row in done:
        by_id[row["id"]].append(row["rewards"]["helpful"])
    margins = sorted((max(rewards) - min(rewards) for rewards in by_id.values()), reverse=True)
    assert [row.margin for row in rows] == close(margins[:10])


def test_arms(ask):
    rows, done = ask("How does each ARM like the completions, per token?")
    assert [row.arm for row in rows] == ["harmless", "helpful"]
    assert rows[1].completions == len(done) == 256
    assert rows[1].mean_token_reward == close(mean(row["rewards"]["helpful"] / len(row["tokens"]) for row in done))


def test_lowest_tokens(ask):
    rows, done = ask("Which tokens does an ARM like least?")
    by_token = defaultdict(list)
    for row in done:
        for token, reward in zip(row["tokens"], row["token_rewards"]["helpful"], strict=True):
            by_token[token].append(reward)
    worst = min(by_token, key=lambda token: mean(by_token[token]))
    assert rows[0].token == worst
    assert (rows[0].times, rows[0].mean_reward) == (len(by_token[worst]), close(mean(by_token[worst])))


def test_positions(ask):
    rows, done = ask("How does the reward change along the completion?")
    assert [row.position for row in rows] == list(range(1, len(rows) + 1))
    third = [row["token_rewards"]["helpful"][2] for row in done]
    assert (rows[2].tokens, rows[2].mean_reward) == (len(third), close(mean(third)))


def test_source_columns(ask):
    rows, done = ask("How do the columns of my dataset and the rewards go together?")
    expected = {label: mean(row["rewards"]["helpful"] for row in done if row["label"] == label) for label in "abc"}
    assert {row.label: row.mean_reward for row in rows} == close(expected)


def test_a_table_of_ones_own(ask, ledger, finished):
    job = finished([{"id": i, "prompt": f"p{i}"} for i in range(20)])
    with ledger.begin() as connection:
        connection.execute(sa.text("CREATE TABLE reviews (id integer, author text)"))
        connection.execute(
            sa.text("INSERT INTO reviews VALUES (:id, :author)"),
            [{"id": i, "author": ["Ann", "Bob"][i % 2]} for i in range(0, 25)],
        )
    rows, done = ask("How do I join results to a table of mine?", job)
    expected = {
        author: mean(row["rewards"]["helpful"] for row in done if row["id"] % 2 == odd)
        for odd, author in enumerate(["Ann", "Bob"])
    }
    assert {row.author: row.mean_reward for row in rows} == close(expected)
    assert [row.completions for row in rows] == [20, 20]


def test_failures(ask):
    rows, _ = ask("What failed, and why?")
    assert [(row.error_code, row.times) for row in rows] == [("prompt_too_long", 2)]
    assert "context" in rows[0].for_example


def test_kl(ask):
    rows, done = ask("What does the reward cost in KL?")
    expected = [sum(row["logprobs"]) - sum(row["base_logprobs"]) for row in done]
    assert [row.kl for row in rows] == close(sorted(expected, reverse=True))


def test_sweep(ask):
    rows, done = ask("What does each point of a sweep give?")
    assert [float(row.helpful_weight) for row in rows] == [0.0, 1.0]
    of_one = [row for row in done if row["weights"]["helpful"] == 1.0]
    assert rows[1].completions == len(of_one)
    assert rows[1].helpful == close(mean(row["rewards"]["helpful"] / len(row["tokens"]) for row in of_one))


def test_endings(ask):
    rows, done = ask("How many completions were cut short?")
    assert {row.finish_reason: row.completions for row in rows} == Counter(row["finish_reason"] for row in done)


def test_every_column_of_the_views_is_documented(ledger):
    documented = set(re.findall(r"`(\w+)`", DOCUMENT.split("\n## ")[0]))
    for view in ("results", "job_progress"):
        columns = {column["name"] for column in sa.inspect(ledger).get_columns(view)}
        assert columns - documented == set()
