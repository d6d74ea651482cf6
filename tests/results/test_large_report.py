"""A report of as many completions as it shows at most; `benchmarks/report.py` says how fast it opens."""

from pathlib import Path

import pytest
from playwright.sync_api import expect

from benchmarks.report import MOST_MEGABYTES, made

PICTURE = Path("build/large-report.png")


@pytest.mark.slow
def test_ten_thousand_completions_of_128_tokens_are_usable(open_page):
    html = made(10_000, 128)
    assert len(html.encode()) < MOST_MEGABYTES * 1e6
    page = open_page(html)
    count, tokens = page.locator("#count"), page.locator("article").first.locator(".token")
    expect(count).to_have_text("10,000 of 10,000 completions")
    expect(tokens).to_have_count(128)
    expect(page.locator("#kl svg.main-svg").first).to_be_visible()
    page.locator("#search").fill("number 9999?")
    expect(count).to_have_text("1 of 10,000 completions")
    expect(tokens).to_have_count(128)
    tokens.nth(100).hover()
    for part in ("log π", "log π base", "helpful", "harmless"):
        expect(page.locator("#tip")).to_contain_text(part)
    PICTURE.parent.mkdir(exist_ok=True)
    page.screenshot(path=PICTURE)
    page.locator("#search").fill("")
    page.locator("#finish").select_option("length")
    expect(count).to_have_text("0 of 10,000 completions")
    page.locator("#finish").select_option("stop")
    expect(count).to_have_text("10,000 of 10,000 completions")
    page.locator("#sort").select_option("arm0:down")
    expect(page.locator("#page")).to_have_text("page 1 of 500")
    expect(tokens).to_have_count(128)
