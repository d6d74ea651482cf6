"""The code blocks of README.md, docs/ and the help texts."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
from markdown_it import MarkdownIt

from worker.cli import main

LANGUAGES = {"sh", "sql", "toml", "json", "text"}
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


def examples() -> list[str]:
    """The commands under "Example" in the help of every command."""
    return [line for command in _commands(main) for line in _examples(command)]


def _commands(command: click.Command) -> Iterator[click.Command]:
    yield command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from _commands(child)


def _examples(command: click.Command) -> list[str]:
    _, _, after = inspect.cleandoc(command.help or "").partition("\b\n")
    return [line.strip() for line in after.splitlines()[1:] if line.strip()]
