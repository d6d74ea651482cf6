"""The code blocks of README.md and docs/."""

from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

LANGUAGES = {"sh", "python", "sql", "toml", "json", "text"}
"""What a fenced block may be; `text` is neither run nor meant to be, so it must not look like a command."""


@dataclass(frozen=True)
class Block:
    """A block of code on a page."""

    page: str
    language: str
    text: str


def pages() -> list[Path]:
    """All pages, the README first."""
    return [Path("README.md"), *sorted(Path("docs").glob("*.md"))]


def blocks(language: str | None = None) -> list[Block]:
    """All fenced and indented blocks, or those of a language."""
    found = []
    for page in pages():
        for token in MarkdownIt().parse(page.read_text()):
            if token.type in ("fence", "code_block"):
                found.append(Block(str(page), token.info.strip() or "indented", token.content))
    return [block for block in found if language in (None, block.language)]
