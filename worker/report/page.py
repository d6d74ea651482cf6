"""The HTML page: data, style, scripts and the plotting library in one file."""

import json
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from worker.errors import ServiceError
from worker.report.collect import ReportData


class ReportError(ServiceError):
    """A report cannot be made."""


def page(data: ReportData, token_texts: dict[int, bytes] | None) -> str:
    """The page.

    Args:
        data: what it shows.
        token_texts: bytes by token id; None: not known, ids are shown.

    Raises:
        ReportError: plotly is not installed.
    """
    assets = files("worker.report") / "assets"
    parts = {name: (assets / name).read_text(encoding="utf-8") for name in ("report.html", "report.css", "report.js")}
    found = {
        "title": _escaped(f"{data.facts.get('name') or data.facts['job']} · genarm report"),
        "style": parts["report.css"],
        "script": parts["report.js"],
        "plotly": _plotly(),
        "data": _embedded(_content(data, token_texts)),
        "chunks": "\n".join(f'<script type="application/octet-stream">{chunk}</script>' for chunk in data.chunks),
    }
    text = parts["report.html"]
    for name, value in found.items():
        before, after = text.split(f"<!--{name}-->")
        text = f"{before}{value}{after}"
    return text


def _content(data: ReportData, token_texts: dict[int, bytes] | None) -> dict[str, Any]:
    return {
        "facts": data.facts,
        "arms": data.arms,
        "prompts": data.prompts,
        "entries": vars(data.entries),
        "failures": [asdict(failure) for failure in data.failures],
        "has_logprobs": data.has_logprobs,
        "has_base": data.has_base,
        "front": data.front,
        "tokens": None if token_texts is None else {key: text.decode("latin-1") for key, text in token_texts.items()},
    }


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise ReportError("a report needs plotly: pip install 'genarm[report]'") from None
    return str(get_plotlyjs())


def _embedded(value: Any) -> str:
    """JSON that ends no script element, whatever the texts are."""
    return json.dumps(value, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
