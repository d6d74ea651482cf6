"""Hook of mkdocs: fills in what is generated from the code, so that it cannot disagree with it."""

import inspect
from typing import Any

import click

from worker.cli import main
from worker.settings import ENV_PREFIX, Settings

EXAMPLE = "Example"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the markers of a page."""
    if "<!-- commands -->" in markdown:
        markdown = markdown.replace("<!-- commands -->", "\n".join(_command(main, "genarm")))
    if "<!-- settings -->" in markdown:
        markdown = markdown.replace("<!-- settings -->", "\n".join(_settings()))
    return markdown


def _command(command: click.Command, path: str) -> list[str]:
    """A command's section, then those of the commands in it."""
    context = click.Context(command, info_name=path)
    lines = [f"## {path}", "", *_help(command), f"    {command.get_usage(context).removeprefix('Usage: ')}", ""]
    options = [
        record
        for option in command.get_params(context)
        if isinstance(option, click.Option) and (record := option.get_help_record(context))
    ]
    if options:
        lines += ["| option | |", "| --- | --- |"]
        lines += [f"| `{_cell(name)}` | {_cell(text)} |" for name, text in options] + [""]
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            lines += _command(child, f"{path} {name}")
    return lines


def _help(command: click.Command) -> list[str]:
    """The help text; its examples, which follow a line with a backspace, as code."""
    lines = []
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        if paragraph.startswith("\b\n"):
            title, *examples = paragraph.removeprefix("\b\n").splitlines()
            lines += [title, "", *(f"    {line.strip()}" for line in examples), ""]
        else:
            lines += [" ".join(paragraph.split()), ""]
    return lines


def _settings() -> list[str]:
    lines = ["| variable | default | |", "| --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else f"`{field.default}`"
        lines.append(f"| `{ENV_PREFIX}{name.upper()}` | {default} | {_cell(field.description or '')} |")
    return lines


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
