"""`vim-embed attach`: teach an installed platonic-universe, or a checkout, our aliases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vim_embed_client.cli.common import json_option, print_json
from vim_embed_client.cli.written_files import InputPath
from vim_embed_client.client import Client
from vim_embed_client.errors import VimEmbedError
from vim_embed_client.platonic import attach as attaching
from vim_embed_client.platonic.aliases import ALIASES, twin_alias
from vim_embed_client.platonic.interpreter import ask
from vim_embed_client.platonic.remote import missing_models

_SERVICE_S = 2.0


@click.command()
@click.argument("path", required=False, type=click.Path(path_type=Path))
@click.option(
    "--check", "action", flag_value="check",
    help="Say whether it knows them and its Python can run them; exit 0 or 1.",
)  # fmt: skip
@click.option("--diff", "action", flag_value="diff", help="Print the change and write nothing.")
@click.option(
    "--models", metavar="NAMES", callback=lambda context, option, value: _names(value),
    help="The host's own models that get a remote twin, with commas: dino,vit makes --model "
    "dino-remote and vit-remote; all, or none.  [default: those that have one]",
)  # fmt: skip
@click.option("--undo", is_flag=True, help="Take the aliases out again; with --diff, show how.")
@click.option(
    "--replace", is_flag=True,
    help="Put models of these names that are not vim-embed's aside, as comments that --undo "
    "brings back.",
)  # fmt: skip
@click.option(
    "--python", metavar="FILE", type=InputPath(),
    help="Python that runs it.  [default: that of its environment or checkout]",
)  # fmt: skip
@json_option
def attach(
    path: Path | None,
    action: str | None,
    models: set[str] | None,
    undo: bool,
    replace: bool,
    python: Path | None,
    as_json: bool,
) -> None:
    """Teach platonic-universe the models vim, vim-proxy, vim-remote and vim-remote-proxy.

    PATH is a checkout or the folder of its package pu; without it, the package installed beside
    this command. Afterwards `platonic_universe run --model vim-remote --mode jwst` works, and
    `--model vim-remote-tiny` runs one size alone.
    """
    if undo and action == "check":
        raise click.UsageError("--check and --undo do not go together")
    if undo and (replace or models is not None):
        raise click.UsageError("--replace or --models and --undo do not go together")
    package = attaching.find_package(path)
    planned = attaching.plan(package, models=models, undo=undo, replace=replace)
    changes = attaching.pending(planned)
    diff = attaching.diff(changes, package) if action == "diff" else None
    if action is None:
        attaching.write(changes)
    problems = [] if undo or action == "diff" else _problems(package, python)
    if as_json:
        told = _described(package, changes, action, undo=undo)
        print_json(told | {"diff": diff, "problems": problems})
    else:
        if diff is not None:
            click.echo(diff, nl=False)
        elif action is None:
            _report(package, changes, undo=undo)
        else:
            _tell(package, changes)
        for problem in problems:
            click.echo(f"But {problem}", err=action is None)
    if action == "check" and (changes or problems):
        click.get_current_context().exit(1)


def _problems(package: Path, python: Path | None) -> list[str]:
    """What would end or spoil a run, as far as it can be seen before one."""
    return ask(package, python).problems(package) + _missing_sizes()


def _missing_sizes() -> list[str]:
    """What a service that answers now lacks of the aliases that go through one."""
    try:
        with Client(timeout=_SERVICE_S, max_retries=0) as client:
            listed = client.models()
            url = client.base_url
    except VimEmbedError:
        return []  # started later, perhaps elsewhere: a run asks again
    lacking = {
        alias: missing_models(listed, names)
        for alias, names in ALIASES.items()
        if alias.startswith("vim-remote")
    }
    return [
        f"{url} lacks {', '.join(names)}: --model {alias} would stop there; start the service "
        "with --model for each size"
        for alias, names in lacking.items()
        if 0 < len(names) < len(ALIASES[alias])  # a family that it lacks whole is not meant
    ]


def _described(
    package: Path, changes: list[attaching.Change], action: str | None, *, undo: bool
) -> dict[str, Any]:
    """For JSON: `attached` as it is now, and the files that were, or would be, changed."""
    return {
        "package": str(package),
        "aliases": _known(package),
        "attached": (bool(changes) if undo else not changes) if action else not undo,
        "changed": action is None and bool(changes),
        "files": [str(change.path) for change in changes],
    }


def _tell(package: Path, changes: list[attaching.Change]) -> None:
    known = ", ".join(_known(package))
    if not changes:
        click.echo(f"{package} knows {known}")
        return
    names = ", ".join(change.path.relative_to(package).as_posix() for change in changes)
    click.echo(f"{package} does not know all that was asked for (in {names}): attach it")


def _report(package: Path, changes: list[attaching.Change], *, undo: bool) -> None:
    for change in changes:
        click.echo(f"changed {change.path}")
    state = "no longer knows" if undo else "knows"
    known = ", ".join(ALIASES if undo else _known(package))
    click.echo(f"{package} {state} {known}" + ("" if changes else " (as before)"))


def _known(package: Path) -> list[str]:
    """Our aliases with all sizes, and those of the twins that are attached."""
    return [*ALIASES, *map(twin_alias, attaching.twins_of(package))]


def _names(value: str | None) -> set[str] | None:
    """Names with commas, `none` for none of them."""
    if value is None:
        return None
    names = {name.strip() for name in value.split(",") if name.strip()} - {"none"}
    if not names and value.strip() != "none":
        raise click.BadParameter("name models, all, or none")
    return names
