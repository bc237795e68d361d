"""`vim-embed join`: two surveys in one table, as platonic-universe reads it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click
from rich.markup import escape

from vim_embed_client.cli.common import json_option, print_json, say, stderr
from vim_embed_client.cli.written_files import InputPath, OutputPath, WritingCommand
from vim_embed_client.errors import OutputError
from vim_embed_client.scoring.survey_tables import join_surveys

_FILE = InputPath()


def _modes(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, str] | None:
    if value is None:
        return None
    names = value.split(",")
    if len(names) != 2 or any("_" in name or not name.strip() for name in names):
        raise click.BadParameter(f"{value!r} is not of the form hsc,jwst (two words without _)")
    return names[0], names[1]


def _parquet(ctx: click.Context, param: click.Parameter, value: Path) -> Path:
    if value.suffix != ".parquet":
        raise click.BadParameter(f"{value} does not end in .parquet")
    return value


@click.command(cls=WritingCommand)
@click.argument("first", type=_FILE, callback=_parquet)
@click.argument("second", type=_FILE, callback=_parquet)
@click.option(
    "-o", "--output", required=True, type=OutputPath(), callback=_parquet,
    metavar="FILE", help="Table to write: .parquet.",
)  # fmt: skip
@click.option(
    "--modes", metavar="A,B", callback=_modes,
    help="Names of the two surveys, such as hsc,jwst.  [default: those of embed --mode]",
)  # fmt: skip
@click.option(
    "--by-row",
    is_flag=True,
    help="Take row i of both files for the same source, whatever the ids say.",
)
@click.option("--common", is_flag=True, help="Keep the sources that both files have, by their ids.")
@json_option
def join(
    first: Path,
    second: Path,
    output: Path,
    modes: tuple[str, str] | None,
    by_row: bool,
    common: bool,
    as_json: bool,
) -> None:
    """Put the embeddings of two surveys side by side, for platonic-universe.

    FIRST and SECOND are .parquet files of `vim-embed embed`, with or without --layers, of the same
    model and sources. `compare` and `calibrate` of platonic-universe read the table: its columns
    are {layer}_{survey}, or {model}_{size}_{survey} of files without layers.
    """
    try:
        table = join_surveys(first, second, output, modes=modes, by_row=by_row, common=common)
    except OSError as error:
        raise OutputError(f"{output} cannot be written ({error.strerror or error})") from error
    if as_json:
        print_json({"output": str(output), **asdict(table)})
        return
    say(
        stderr(),
        f"{table.rows:,} rows, paired {table.paired}, {len(table.columns)} columns -> "
        f"{escape(str(output))}",
    )
