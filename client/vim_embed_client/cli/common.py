"""What the subcommands share: options, consoles and the client they use."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console

from vim_embed_client.cli.angles import angle
from vim_embed_client.cli.written_files import InputPath
from vim_embed_client.errors import ConfigurationError
from vim_embed_client.options import DEFAULT_URL
from vim_embed_client.paths import check_folder_of

F = TypeVar("F", bound=Callable[..., Any])

SOME_LEFT_OUT = 5
FIGURES = (".png", ".pdf", ".svg")
TABLES = (".csv", ".tex", ".md")
RANDOM_WEIGHTS = "[bold red]RANDOM WEIGHTS: not a scientific result.[/]"


def service_options(command: F) -> F:
    """Add --url and --api-key, of a service that the command needs."""
    return service_option(f"Service to use.  [default: VIM_EMBED_URL, else {DEFAULT_URL}]")(command)


def service_option(text: str) -> Callable[[F], F]:
    """--url with this help, and --api-key."""
    url = click.option("--url", metavar="URL", help=text)
    key = click.option(
        "--api-key", metavar="KEY", help="Key that it asks for.  [default: VIM_EMBED_API_KEY]"
    )
    return lambda command: url(key(command))


def json_option(command: F) -> F:
    """Add --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def pairing_options(command: F) -> F:
    """Add --by-row, --common, --match, --pairs and --drop-invalid, to compare files.

    The command gets the first four as `pairing`, keywords of `pair`.
    """
    by_row = click.option(
        "--by-row",
        is_flag=True,
        help="Take row i of both files for the same source, whatever the ids say.",
    )
    common = click.option(
        "--common", is_flag=True, help="Keep the sources that both files have, by their ids."
    )
    match = match_option(
        "Pair the rows whose positions on the sky are each other's nearest within this angle, such "
        "as 1arcsec."
    )
    pairs = click.option(
        "--pairs", metavar="TABLE[:ONE,TWO]",
        help="Pair rows by a table with an id of the first file and one of the second in a row.",
    )  # fmt: skip

    @wraps(command)
    def paired(**given: Any) -> Any:
        pairing = {name: given.pop(name) for name in ("by_row", "common", "match", "pairs")}
        chosen = [f"--{name.replace('_', '-')}" for name, value in pairing.items() if value]
        if len(chosen) > 1:
            raise click.UsageError(f"{' and '.join(chosen)} exclude each other: give one of them")
        return command(pairing=pairing, **given)

    wrapped: Any = by_row(common(match(pairs(drop_option(paired)))))
    return wrapped  # type: ignore[no-any-return]


def match_option(text: str) -> Callable[[F], F]:
    """--match, an angle in arcseconds."""
    return click.option("--match", metavar="ANGLE", callback=angle, help=text)


def drop_option(command: F) -> F:
    """Add --drop-invalid."""
    return click.option(
        "--drop-invalid", is_flag=True, help="Leave out rows that are zero or not finite."
    )(command)


def style_option(command: F) -> F:
    """Add --style."""
    return click.option(
        "--style", metavar="FILE", type=InputPath(),
        help="matplotlib style sheet for the figures: fonts, sizes, colours.",
    )(command)  # fmt: skip


def figure_path(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    """An option's callback: the path of a figure, refused before any work if it cannot be one."""
    if value is None:
        return None
    _check_output(value, FIGURES)
    if find_spec("matplotlib") is None:
        raise ConfigurationError('figures need matplotlib: pip install "vim-embed[plot]"')
    return value


def sheet_path(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    """A callback as `figure_path`, of commands that show images: these may lie there as well.

    An existing figure is replaced only if vim-embed drew it.
    """
    from vim_embed_client.bulk.output_checks import refuse_foreign
    from vim_embed_client.bulk.sources.drawn import drawn_here

    path = figure_path(ctx, param, value)
    if path is not None:
        refuse_foreign(path, drawn_here, "vim-embed")
    return path


def table_or_figure(
    ctx: click.Context, param: click.Parameter, value: tuple[Path, ...]
) -> tuple[Path, ...]:
    """An option's callback: paths of tables and figures, refused before any work."""
    for path in value:
        if path.suffix.lower() in FIGURES:
            figure_path(ctx, param, path)
        else:
            _check_output(path, (*TABLES, *FIGURES))
    return value


def tables(ctx: click.Context, param: click.Parameter, value: tuple[Path, ...]) -> tuple[Path, ...]:
    """An option's callback: paths of tables, refused before any work."""
    for path in value:
        _check_output(path, TABLES)
    return value


def _check_output(path: Path, endings: Sequence[str]) -> None:
    if path.suffix.lower() not in endings:
        raise click.BadParameter(f"{path} does not end in one of {', '.join(endings)}")
    check_folder_of(path)


def metrics_option(text: str, default: str | None = None) -> Callable[[F], F]:
    """Add --metric: names with commas, or `all`."""
    from vim_embed_client.scoring.metrics import METRICS

    def names(ctx: click.Context, param: click.Parameter, value: str | None) -> list[str]:
        found = value.split(",") if value else []
        if found == ["all"]:
            return list(METRICS)
        if unknown := [name for name in found if name not in METRICS]:
            raise click.BadParameter(
                f"{unknown[0]!r} is none of {', '.join(METRICS)}, or all; MKNN is mutual-knn"
            )
        return found

    return click.option(
        "--metric", "metrics", callback=names, metavar="NAME,...", default=default,
        show_default=default is not None, help=text,
    )  # fmt: skip


def print_json(value: Any) -> None:
    """Print for programs: plain JSON on standard output."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def stdout() -> Console:
    """Where results go."""
    return Console(highlight=False, emoji=False)


def stderr() -> Console:
    """Where progress and remarks go."""
    return Console(stderr=True, highlight=False, emoji=False)


def say(console: Console, text: str) -> None:
    """Print a line: folded between words on a terminal, in one piece where a program reads it."""
    console.print(text, soft_wrap=not console.is_terminal)


def rate(rows_per_s: float) -> str:
    """`4,551 rows/s`, `2.4 rows/s`."""
    return f"{rows_per_s:,.{0 if rows_per_s >= 100 else 1}f} rows/s"
