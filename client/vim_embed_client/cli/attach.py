"""`vim-embed attach`: teach an installed platonic-universe, or a checkout, our aliases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vim_embed_client.cli.common import json_option, print_json
from vim_embed_client.platonic import attach as attaching
from vim_embed_client.platonic.aliases import ALIASES


@click.command()
@click.argument("path", required=False, type=click.Path(path_type=Path))
@click.option(
    "--check", "action", flag_value="check", help="Say whether it knows them; exit 0 or 1."
)
@click.option("--diff", "action", flag_value="diff", help="Print the change and write nothing.")
@click.option("--undo", is_flag=True, help="Take the aliases out again; with --diff, show how.")
@json_option
def attach(path: Path | None, action: str | None, undo: bool, as_json: bool) -> None:
    """Teach platonic-universe the models vim, vim-proxy, vim-remote and vim-remote-proxy.

    PATH is a checkout or the folder of its package pu; without it, the package installed beside
    this command. Afterwards `platonic_universe run --model vim-remote --mode jwst` works.
    """
    if undo and action == "check":
        raise click.UsageError("--check and --undo do not go together")
    package = attaching.find_package(path)
    changes = attaching.pending(attaching.plan(package, undo=undo))
    diff = attaching.diff(changes, package) if action == "diff" else None
    if action is None:
        attaching.write(changes)
    if as_json:
        print_json(_described(package, changes, action, undo=undo) | {"diff": diff})
    elif diff is not None:
        click.echo(diff, nl=False)
    elif action is None:
        _report(package, changes, undo=undo)
    else:
        _tell(package, changes)
    if action == "check" and changes:
        click.get_current_context().exit(1)


def _described(
    package: Path, changes: list[attaching.Change], action: str | None, *, undo: bool
) -> dict[str, Any]:
    """For JSON: `attached` as it is now, and the files that were, or would be, changed."""
    return {
        "package": str(package),
        "aliases": list(ALIASES),
        "attached": (bool(changes) if undo else not changes) if action else not undo,
        "changed": action is None and bool(changes),
        "files": [str(change.path) for change in changes],
    }


def _tell(package: Path, changes: list[attaching.Change]) -> None:
    if not changes:
        click.echo(f"{package} knows {', '.join(ALIASES)}")
        return
    names = ", ".join(change.path.relative_to(package).as_posix() for change in changes)
    click.echo(f"{package} does not know all of {', '.join(ALIASES)} (in {names}): attach it")


def _report(package: Path, changes: list[attaching.Change], *, undo: bool) -> None:
    for change in changes:
        click.echo(f"changed {change.path}")
    state = "no longer knows" if undo else "knows"
    click.echo(f"{package} {state} {', '.join(ALIASES)}" + ("" if changes else " (as before)"))
