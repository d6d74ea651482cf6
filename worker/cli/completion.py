"""`genarm completion`: the Tab key knows commands, options and the ids of jobs."""

import click
from click.shell_completion import get_completion_class

from worker.cli import console

VARIABLE = "_GENARM_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, /, shell: str) -> None:
    """Print the script that completes genarm's commands, options and job ids in a shell.

    For bash, add `eval "$(genarm completion bash)"` to ~/.bashrc; for zsh, the same with zsh to ~/.zshrc; for fish,
    write the script to ~/.config/fish/completions/genarm.fish.

    \b
    Example:
        genarm completion bash
    """
    root = context.find_root()
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"this version of click has no completion for {shell}")
    console.out(kind(root.command, {}, "genarm", VARIABLE).source())
