"""`vim-embed map`: embeddings on a plane, coloured by a column."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape

from vim_embed_client.cli.common import (
    FIGURES,
    RANDOM_WEIGHTS,
    drop_option,
    figure_path,
    json_option,
    match_option,
    print_json,
    say,
    stdout,
)
from vim_embed_client.errors import InputError
from vim_embed_client.scoring.embedding_files import EmbeddingFile, read_embeddings
from vim_embed_client.scoring.pairing import usable_rows

if TYPE_CHECKING:
    from vim_embed_client.figures.columns import Column
    from vim_embed_client.figures.projection import Projection

_LEAST_ROWS = 3


def _outputs(
    ctx: click.Context, param: click.Parameter, value: tuple[Path, ...]
) -> tuple[Path, ...]:
    for path in value:
        if path.suffix.lower() != ".csv":
            figure_path(ctx, param, path)
    return value


@click.command("map")
@click.argument("embeddings", type=click.Path())
@click.option(
    "-o", "--output", "outputs", multiple=True, metavar="FILE", callback=_outputs,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Map to draw (.png, .pdf, .svg), or coordinates (.csv); may be repeated.",
)  # fmt: skip
@click.option(
    "--colour", "--color", "colour", metavar="COLUMN|TABLE:COLUMN",
    help="Column of the Parquet file itself, or of a catalogue joined by id: CSV, Parquet, FITS, "
    "ECSV or VOTable; cat.fits[2]:z names an extension.",
)  # fmt: skip
@click.option(
    "--label", metavar="TEXT", help="What the colours mean, with the unit.  [default: the column]"
)
@click.option(
    "--id-column", default="id", show_default=True, metavar="NAME", help="Of the table's ids."
)
@click.option(
    "--categorical", "kind", flag_value="categorical", help="Colour by classes, even of numbers."
)
@click.option("--continuous", "kind", flag_value="continuous", help="Colour by value.")
@click.option(
    "--method", default="pca", show_default=True, type=click.Choice(["pca", "umap"]),
    help="Principal components, or UMAP by cosine distance.",
)  # fmt: skip
@click.option("--seed", default=0, show_default=True, help="Of UMAP.")
@match_option(
    "Join the table by position on the sky, within this angle, such as 1arcsec, and not by id."
)
@drop_option
@json_option
def map_command(
    embeddings: str,
    outputs: tuple[Path, ...],
    colour: str | None,
    label: str | None,
    id_column: str,
    kind: Any,
    method: str,
    seed: int,
    match: float | None,
    drop_invalid: bool,
    as_json: bool,
) -> None:
    """Draw embeddings as points on a plane.

    EMBEDDINGS is a file that `vim-embed score` takes. Classes get a colour and a shape each,
    numbers a scale of colours; few whole numbers count as classes.
    """
    from vim_embed_client.figures.columns import read_column
    from vim_embed_client.figures.projection import METHODS

    if not (outputs or as_json):
        raise click.UsageError("nothing to do: give -o FILE, --json or both")
    if match is not None and ":" not in (colour or ""):
        raise click.UsageError("--match is for a column of a table: --colour TABLE:COLUMN")
    (file,) = usable_rows(read_embeddings(embeddings), drop=drop_invalid)
    if len(file) < _LEAST_ROWS:
        raise InputError(f"{file.label} has {len(file)} rows: a map needs {_LEAST_ROWS} or more")
    column = (
        read_column(colour, file, id_column=id_column, kind=kind, match=match) if colour else None
    )
    projection = METHODS[method](file.embeddings, seed)
    for path in outputs:
        if path.suffix.lower() in FIGURES:
            _draw(path, file, projection, column, label)
        else:
            _write_csv(path, file, projection, column)
    if as_json:
        print_json(_report(file, projection, column, outputs))
    else:
        _print(file, projection, column, outputs)


def _draw(
    path: Path,
    file: EmbeddingFile,
    projection: Projection,
    column: Column | None,
    label: str | None,
) -> None:
    from vim_embed_client.figures.map import map_figure
    from vim_embed_client.figures.style import save

    save(map_figure(file, projection, column, label or (column.name if column else "")), path)


def _points(
    file: EmbeddingFile, projection: Projection, column: Column | None
) -> list[dict[str, Any]]:
    """A dictionary for each row: id, row, x, y and the column's value, None where it has none."""
    points = []
    for row, (x, y) in enumerate(projection.coordinates.tolist()):
        point = {"id": file.name(row), "row": int(file.numbers[row]), "x": x, "y": y}
        if column is not None:
            value = column.values[row].item()
            missing = value == "" or (isinstance(value, float) and math.isnan(value))
            point["colour"] = None if missing else value
        points.append(point)
    return points


def _write_csv(
    path: Path, file: EmbeddingFile, projection: Projection, column: Column | None
) -> None:
    points = _points(file, projection, column)
    with path.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.DictWriter(lines, list(points[0]))
        writer.writeheader()
        writer.writerows(points)


def _report(
    file: EmbeddingFile,
    projection: Projection,
    column: Column | None,
    outputs: tuple[Path, ...],
) -> dict[str, Any]:
    return {
        "file": file.label,
        "provenance": dict(file.provenance),
        "random_weights": file.random_weights,
        "axes": list(projection.axes),
        "method": projection.about,
        "colour": {"name": column.name, "kind": column.kind} if column else None,
        "outputs": [str(path) for path in outputs],
        "points": _points(file, projection, column),
    }


def _print(
    file: EmbeddingFile,
    projection: Projection,
    column: Column | None,
    outputs: tuple[Path, ...],
) -> None:
    console = stdout()
    if file.random_weights:
        console.print(RANDOM_WEIGHTS)
    say(console, f"{len(file):,} sources: {' and '.join(projection.axes)}")
    if column is not None:
        missing = f", {column.missing:,} without a value" if column.missing else ""
        console.print(f"Coloured by {escape(column.name)} ({column.kind}{missing})")
    for path in outputs:
        say(console, f"Written: {escape(str(path))}")
