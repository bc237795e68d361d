"""`vim-embed completion`: what a shell needs to complete the command's words."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell.

    For this session: `source <(vim-embed completion bash)`, likewise for zsh, and
    `vim-embed completion fish | source`. For all: have the shell's start-up file do so.
    """
    root = ctx.find_root()
    name = root.info_name or "vim-embed"
    kind = get_completion_class(shell)
    assert kind is not None
    variable = f"_{name}_COMPLETE".replace("-", "_").upper()
    click.echo(kind(root.command, {}, name, variable).source())
