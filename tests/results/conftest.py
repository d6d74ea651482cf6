"""Jobs with results."""

import pytest

from benchmarks.chromium import EXECUTABLE, chromium
from tests.results import filled


@pytest.fixture
def submit(ledger):
    """Store a job."""
    return lambda rows, **more: filled.submit(ledger, rows, **more)


@pytest.fixture
def fill(ledger):
    """Fill a job with results."""
    return lambda job, **more: filled.fill(ledger, job, **more)


@pytest.fixture
def finished(submit, fill):
    """A job that is done."""

    def finished(rows, failing=(), **more):
        job = submit(rows, **more)
        fill(job, failing=failing)
        return job

    return finished


@pytest.fixture(scope="session")
def browser():
    """A browser."""
    if EXECUTABLE is None:
        pytest.skip("needs Debian's package chromium")
    with chromium() as browser:
        yield browser


@pytest.fixture
def open_page(browser, tmp_path):
    """Open the page of a report; whatever it complains of, or asks of the network, fails the test."""
    complaints = []

    def open_page(html, **more):
        path = tmp_path / "report.html"
        path.write_text(html, encoding="utf-8")
        page = browser.new_page(viewport={"width": 1280, "height": 900}, **more)
        page.on("console", lambda message: complaints.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: request.url.startswith("file:") or complaints.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_selector(".token, .error")
        return page

    yield open_page
    assert [text for text in complaints if not text.startswith(("blob:", "data:"))] == []
