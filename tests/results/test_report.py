"""The report, opened in headless Chromium."""

from itertools import product

import pytest
from playwright.sync_api import expect

from db import jobs
from tests.results.filled import WORDS
from worker.report.collect import collect, spread_spans
from worker.report.page import page as html_page
from worker.report.sweep import front_of

TOKEN_TEXTS = {index: f" {word}".encode() for index, word in enumerate(WORDS)}
pytestmark = pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)


@pytest.fixture
def opened(open_page, ledger):
    """Open the report of a job."""

    def opened(job, texts=TOKEN_TEXTS, limit=10_000, **more):
        return open_page(html_page(collect(ledger, jobs.progress(ledger, job.id), limit), texts), **more)

    return opened


def sweep_job(finished, count=30):
    sweep = {"helpful": [0.0, 1.0, 4.0], "harmless": [0.0, 2.0]}
    points = [(a, b) for a in sweep["helpful"] for b in sweep["harmless"]]
    rows = [
        {"id": f"row-{i}", "prompt": f"What about {i}?", "weights": {"helpful": a, "harmless": b}}
        for i in range(count)
        for a, b in points
    ]
    return finished(rows, sweep=sweep, failing={5})


def test_it_shows_the_summary_the_charts_and_the_failures(finished, opened):
    page = opened(sweep_job(finished))
    expect(page.locator("#facts")).to_contain_text("179 of 180")
    expect(page.locator("#failures tbody tr")).to_have_count(1)
    expect(page.locator("#failures")).to_contain_text("prompt_too_long")
    for chart in ("distribution", "kl", "front"):
        expect(page.locator(f"#{chart} svg.main-svg").first).to_be_visible()
    expect(page.locator("#front-caption")).to_contain_text("hypervolume")
    page.locator("#weights").select_option("helpful 4, harmless 2")
    expect(page.locator("#count")).to_have_text("59 of 359 completions")
    page.locator("#points summary").click()
    expect(page.locator("#points tbody tr")).to_have_count(6)
    expect(page.locator("#points tbody")).to_contain_text("on the front")


def drawn(page, chart):
    """The x and y of a chart's traces, by name, and the titles of its axes."""
    script = """({ data, layout }) =>
        [Object.fromEntries(data.map(one => [one.name, [one.x, one.y, one.mode]])),
         layout.xaxis.title.text, layout.yaxis.title.text]"""
    return page.locator(f"#{chart}").evaluate(script)


def test_a_sweep_of_three_arms_is_drawn_by_any_two_of_them(ledger, finished, opened):
    arms = ("helpful", "harmless", "brief")
    points = list(product((0.0, 3.0), repeat=3))
    rows = [{"prompt": f"p{i}", "weights": dict(zip(arms, point, strict=True))} for i in range(9) for point in points]
    job = finished(rows, arms=arms, sweep={arm: [0.0, 3.0] for arm in arms}, samples=1)
    page = opened(job)
    expect(page.locator("#front svg.main-svg").first).to_be_visible()
    found = front_of(ledger, job)
    for x, y in ((0, 1), (2, 1), (2, 2)):
        page.locator("#front-x").select_option(str(x))
        page.locator("#front-y").select_option(str(y))
        traces, *titles = drawn(page, "front")
        assert titles == [f"{arms[x]}, mean token reward", f"{arms[y]}, mean token reward"]
        shown = {(a, b, name) for name, (xs, ys, _) in traces.items() for a, b in zip(xs, ys, strict=True)}
        names = ["front" if flag else "dominated" for flag in found.on_front]
        assert shown == {
            (point.rewards[arms[x]], point.rewards[arms[y]], name)
            for point, name in zip(found.points, names, strict=True)
        }
        assert traces["front"][2] == "markers"


def test_a_sweep_of_one_arm_is_drawn_by_its_reward_and_kl(ledger, finished, opened):
    rows = [{"prompt": f"p{i}", "weights": {"helpful": w}} for i in range(9) for w in (0.0, 1.0, 3.0)]
    job = finished(rows, sweep={"helpful": [0.0, 1.0, 3.0]})
    page = opened(job)
    expect(page.locator("#front svg.main-svg").first).to_be_visible()
    expect(page.locator("#front-axes")).to_be_hidden()
    traces, *titles = drawn(page, "front")
    assert titles == ["mean KL", "helpful, mean token reward"]
    shown = [(x, y) for xs, ys, _ in traces.values() for x, y in zip(xs, ys, strict=True)]
    assert sorted(shown) == sorted((point.kl, point.rewards["helpful"]) for point in front_of(ledger, job).points)
    page.locator("#points summary").click()
    expect(page.locator("#points thead")).to_contain_text("KL")


def test_tokens_are_shaded_and_explained(ledger, finished, opened):
    page = opened(finished(["a"], samples=1))
    data = collect(ledger, jobs.list_jobs(ledger)[0], 10)
    tokens = page.locator("article .token")
    assert "".join(tokens.all_text_contents()).strip() == data.entries.text[0]
    assert "rgba" in tokens.nth(2).get_attribute("style") or "rgb" in tokens.nth(2).get_attribute("style")
    tokens.nth(2).hover()
    tip = page.locator("#tip")
    expect(tip).to_be_visible()
    for part in ("log π", "log π base", "helpful", "harmless", "to the base"):
        expect(tip).to_contain_text(part)
    before = tokens.nth(2).get_attribute("style")
    page.locator("#arm").select_option("1")
    expect(tokens.nth(2)).not_to_have_attribute("style", before)


def test_search_filter_sort_and_pages(finished, opened):
    page = opened(finished([{"id": f"row-{i}", "prompt": f"prompt {i}"} for i in range(60)], failing={7}))
    count = page.locator("#count")
    expect(count).to_have_text("119 of 119 completions")
    page.locator("#search").fill("PROMPT 12")
    expect(count).to_have_text("2 of 119 completions")
    expect(page.locator("article mark").first).to_have_text("prompt 12")
    text = page.evaluate("entries.text[0]")
    middle = text[2:9]  # from within a token to within another
    page.locator("#search").fill(middle.upper())
    marked = page.locator("article").first.locator(".tokens mark.token")
    expect(marked.first).to_be_visible()
    found = marked.all_text_contents()
    assert middle in "".join(found)
    assert all(middle not in "".join(fewer) for fewer in (found[1:], found[:-1]))
    page.locator("#search").fill("")
    expect(page.locator("article mark")).to_have_count(0)
    page.locator("#finish").select_option("failed")
    expect(count).to_have_text("1 of 119 completions")
    expect(page.locator("article .error")).to_contain_text("prompt_too_long")
    page.locator("#finish").select_option("")
    page.locator("#sort").select_option("tokens:down")
    lengths = page.locator("article").evaluate_all("cards => cards.map(card => card.querySelectorAll('.token').length)")
    assert lengths == sorted(lengths, reverse=True)
    page.locator("#next").click()
    expect(page.locator("#page")).to_have_text("page 2 of 6")


def test_the_keyboard_is_enough(finished, opened):
    page = opened(finished([f"prompt {i}" for i in range(30)]))
    for key in ("j", "j", "ArrowRight", "ArrowRight"):
        page.keyboard.press(key)
    expect(page.locator("article").nth(1).locator(".token").nth(1)).to_be_focused()
    expect(page.locator("#tip")).to_be_visible()
    page.keyboard.press("k")
    page.keyboard.press("Escape")
    page.keyboard.press("n")
    expect(page.locator("#page")).to_have_text("page 2 of 3")
    page.keyboard.press("/")
    page.keyboard.type("prompt 3")
    expect(page.locator("#count")).to_have_text("2 of 60 completions")


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_it_follows_the_colour_scheme_and_the_button(finished, opened, scheme):
    page = opened(finished(["a"]), color_scheme=scheme)
    body = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(body)
    assert (before == "rgb(18, 22, 28)") == (scheme == "dark")
    page.locator("#theme").click()
    assert page.evaluate(body) != before


def test_texts_never_become_markup(finished, opened):
    evil = "</script><img src=x onerror=alert(1)><b>"
    texts = {0: evil.encode(), **{index: text for index, text in TOKEN_TEXTS.items() if index}}
    page = opened(finished([{"id": evil, "prompt": evil}] * 8, name=evil), texts)
    expect(page.locator(".prompt").first).to_have_text(evil)
    assert page.locator("img").count() == 0


def test_a_character_of_several_tokens_is_shown_whole(finished, opened):
    parts = {index: bytes([byte]) for index, byte in enumerate("🎉漢é".encode())}
    page = opened(finished(["a"]), {**TOKEN_TEXTS, **parts})
    assert page.evaluate("textsOf([0, 1, 2, 3, 4, 5, 6, 7, 8])") == ["", "", "", "🎉", "", "", "漢", "", "é"]


def test_without_a_tokenizer_ids_are_shown_and_without_arms_no_charts(finished, opened):
    page = opened(finished(["a"], arms=()), None)
    expect(page.locator(".token").first).to_contain_text("⟨")
    expect(page.locator("#charts")).to_be_hidden()


def test_a_scored_job_without_a_base_shows_no_numbers_that_it_lacks(finished, opened):
    page = opened(finished(["a"], samples=1, kind="score"))
    expect(page.locator("#relative")).to_be_hidden()
    expect(page.locator("#weights-label")).to_be_hidden()
    expect(page.locator("#kl-box")).to_be_hidden()
    expect(page.locator("#legend")).to_contain_text("helpful finds it likely")
    expect(page.locator("article header")).not_to_contain_text("KL")
    assert not [text for text in page.locator("#sort option").all_text_contents() if "KL" in text]
    token = page.locator("article .token").nth(2)
    token.hover()
    expect(page.locator("#tip")).to_contain_text("helpful -")
    for part in ("log π", "base", "0.000"):
        expect(page.locator("#tip")).not_to_contain_text(part)
    with_base = opened(finished(["a"], samples=1))
    expect(with_base.locator("#relative")).to_be_visible()
    expect(with_base.locator("article header")).to_contain_text("KL")


def test_of_more_rows_than_the_limit_some_are_spread_over_the_job(ledger, finished):
    job = finished([f"p{i}" for i in range(400)], samples=1, failing={399, *range(75, 175)})
    data = collect(ledger, jobs.progress(ledger, job.id), 100)
    assert len(data.entries.id) == 100
    assert {int(index) // 200 for index in data.entries.id} == {0, 1}
    assert "failed" not in data.entries.finish
    (failure,) = data.failures
    assert (failure.code, failure.rows) == ("prompt_too_long", 101)
    assert "9 tokens" in failure.message


@pytest.mark.parametrize("total", [60, 61, 99, 100, 119, 1000])
@pytest.mark.parametrize("limit", [1, 7, 50, 51, 60])
def test_no_row_is_shown_twice_and_as_many_as_may_be(ledger, submit, total, limit):
    job = submit([f"p{i}" for i in range(total)], samples=1, shard_rows=1000)
    shown = [row for span in spread_spans(ledger, job, limit) for row in range(*span)]
    assert len(set(shown)) == len(shown) == min(limit, total)
    assert max(shown) < total
