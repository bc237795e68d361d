"""`vim-embed attach`: teach an installed platonic-universe, or a checkout, our aliases."""

from __future__ import annotations

from pathlib import Path

import click

from vim_embed_client.platonic import attach as attaching
from vim_embed_client.platonic.aliases import ALIASES


@click.command()
@click.argument("path", required=False, type=click.Path(path_type=Path))
@click.option(
    "--check", "action", flag_value="check", help="Say whether it knows them; exit 0 or 1."
)
@click.option("--diff", "action", flag_value="diff", help="Print the change and write nothing.")
@click.option("--undo", is_flag=True, help="Take the aliases out again; with --diff, show how.")
def attach(path: Path | None, action: str | None, undo: bool) -> None:
    """Teach platonic-universe the models vim, vim-proxy, vim-remote and vim-remote-proxy.

    PATH is a checkout or the folder of its package pu; without it, the package installed beside
    this command. Afterwards `platonic_universe run --model vim-remote --mode jwst` works.
    """
    if undo and action == "check":
        raise click.UsageError("--check and --undo do not go together")
    package = attaching.find_package(path)
    changes = attaching.pending(attaching.plan(package, undo=undo))
    if action == "diff":
        click.echo(attaching.diff(changes, package), nl=False)
    elif action == "check":
        _check(package, changes)
    else:
        attaching.write(changes)
        _report(package, changes, undo=undo)


def _check(package: Path, changes: list[attaching.Change]) -> None:
    if not changes:
        click.echo(f"{package} knows {', '.join(ALIASES)}")
        return
    names = ", ".join(change.path.relative_to(package).as_posix() for change in changes)
    click.echo(f"{package} does not know all of {', '.join(ALIASES)} (in {names}): attach it")
    click.get_current_context().exit(1)


def _report(package: Path, changes: list[attaching.Change], *, undo: bool) -> None:
    for change in changes:
        click.echo(f"changed {change.path}")
    state = "no longer knows" if undo else "knows"
    click.echo(f"{package} {state} {', '.join(ALIASES)}" + ("" if changes else " (as before)"))
