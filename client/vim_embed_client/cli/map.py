"""`vim-embed map`: embeddings on a plane, coloured by a column."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from rich.markup import escape

from vim_embed_client.cli.common import (
    FIGURES,
    RANDOM_WEIGHTS,
    figure_path,
    json_option,
    pairing_options,
    print_json,
    say,
    stdout,
    style_option,
)
from vim_embed_client.cli.written_files import OutputPath, WritingCommand
from vim_embed_client.errors import InputError
from vim_embed_client.scoring.embedding_files import EmbeddingFile, read_embeddings
from vim_embed_client.scoring.pairing import pair, usable_rows

if TYPE_CHECKING:
    from vim_embed_client.figures.columns import Column
    from vim_embed_client.figures.map import MapData

_LEAST_ROWS = 3


def _outputs(
    ctx: click.Context, param: click.Parameter, value: tuple[Path, ...]
) -> tuple[Path, ...]:
    for path in value:
        if path.suffix.lower() != ".csv":
            figure_path(ctx, param, path)
    return value


@click.command("map", cls=WritingCommand)
@click.argument("embeddings", type=click.Path())
@click.argument("second", type=click.Path(), required=False)
@click.option(
    "-o", "--output", "outputs", multiple=True, metavar="FILE", callback=_outputs,
    type=OutputPath(dir_okay=False),
    help="Map to draw (.png, .pdf, .svg), or coordinates (.csv); may be repeated.",
)  # fmt: skip
@click.option(
    "--colour", "--color", "colour", metavar="COLUMN|TABLE:COLUMN",
    help="Column of the Parquet file itself, or of a catalogue joined by id: CSV, FITS, or "
    "another format that --catalogue of embed takes; cat.fits[2]:z names an extension.",
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
@click.option("--log", is_flag=True, help="Colour by the logarithm of the value.")
@click.option(
    "--method", default="pca", show_default=True, type=click.Choice(["pca", "umap"]),
    help="Principal components, or UMAP by cosine distance.",
)  # fmt: skip
@click.option("--seed", default=0, show_default=True, help="Of UMAP.")
@pairing_options
@style_option
@json_option
def map_command(
    embeddings: str,
    second: str | None,
    outputs: tuple[Path, ...],
    colour: str | None,
    label: str | None,
    id_column: str,
    kind: Any,
    log: bool,
    method: str,
    seed: int,
    pairing: dict[str, Any],
    drop_invalid: bool,
    style: Path | None,
    as_json: bool,
) -> None:
    """Draw embeddings as points on a plane.

    EMBEDDINGS is a file that `vim-embed score` takes. With SECOND, another survey's embeddings of
    the same sources by the same model, both are on one map, and a line joins the two views of a
    source. Classes get a colour and a shape each, numbers a scale of colours; few whole numbers
    count as classes.
    """
    from vim_embed_client.figures.map import MapData
    from vim_embed_client.figures.projection import METHODS

    if not (outputs or as_json):
        raise click.UsageError("nothing to do: give -o FILE, --json or both")
    by_pairing = [f"--{name.replace('_', '-')}" for name, value in pairing.items() if value]
    of_table = ":" in (colour or "") and by_pairing == ["--match"]
    if second is None and by_pairing and not of_table:
        raise click.UsageError(
            f"{by_pairing[0]} pairs two files, and --match also joins a table to colour by "
            "(--colour TABLE:COLUMN): give a second file"
        )
    if log and (kind == "categorical" or not colour):
        raise click.UsageError("--log is of numbers to colour by: give --colour, --continuous")
    files = _files(embeddings, second, pairing, drop=drop_invalid)
    column = _column(colour, files[0], id_column, "continuous" if log else kind, pairing["match"])
    rows = np.concatenate([file.embeddings for file in files])
    data = MapData(
        files=files,
        projection=METHODS[method](rows, seed),
        column=column,
        label=label or (column.name if column else ""),
        log=log,
    )
    for path in outputs:
        (_draw if path.suffix.lower() in FIGURES else _write_csv)(path, data, style)
    if as_json:
        print_json(_report(data, outputs))
    else:
        _print(data, outputs)


def _column(
    colour: str | None, file: EmbeddingFile, id_column: str, kind: Any, match: float | None
) -> Column | None:
    from vim_embed_client.figures.columns import read_column

    if colour is None:
        return None
    by_position = match if ":" in colour else None
    return read_column(colour, file, id_column=id_column, kind=kind, match=by_position)


def _files(
    embeddings: str, second: str | None, pairing: dict[str, Any], *, drop: bool
) -> tuple[EmbeddingFile, ...]:
    """One file, or two with the same sources in the same rows, in one space."""
    by_row = pairing["by_row"]
    files: tuple[EmbeddingFile, ...] = (read_embeddings(embeddings, by_row=by_row),)
    if second is not None:
        files = pair(files[0], read_embeddings(second, by_row=by_row), **pairing)[:2]
    files = usable_rows(*files, drop=drop)
    if len(files[0]) < _LEAST_ROWS:
        raise InputError(
            f"{files[0].label} has {len(files[0])} rows: a map needs {_LEAST_ROWS} or more"
        )
    widths = [file.embeddings.shape[1] for file in files]
    digests = {file.provenance.get("weights_digest", "") for file in files} - {""}
    if len(set(widths)) > 1 or len(digests) > 1:
        raise InputError(
            f"{' and '.join(file.label for file in files)} are of two models ({widths[0]} and "
            f"{widths[-1]} numbers a row): one map has the embeddings of one model"
        )
    return files


def _draw(path: Path, data: MapData, style: Path | None) -> None:
    from vim_embed_client.figures.map import map_figure
    from vim_embed_client.figures.style import save, styled

    with styled(style):
        save(map_figure(data), path)


def _points(data: MapData) -> list[dict[str, Any]]:
    """A dictionary for each row: id, row, x, y, the column's value (None where it has none).

    Of two files, also which of them.
    """
    points = []
    for place, file in enumerate(data.files):
        for row, (x, y) in enumerate(data.points(place).T.tolist()):
            point = {"id": file.name(row), "row": int(file.numbers[row]), "x": x, "y": y}
            if len(data.files) > 1:
                point = {"file": file.label, **point}
            if data.column is not None:
                value = data.column.values[row].item()
                missing = value == "" or (isinstance(value, float) and math.isnan(value))
                point["colour"] = None if missing else value
            points.append(point)
    return points


def _write_csv(path: Path, data: MapData, style: Path | None) -> None:
    points = _points(data)
    with path.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.DictWriter(lines, list(points[0]))
        writer.writeheader()
        writer.writerows(points)


def _report(data: MapData, outputs: tuple[Path, ...]) -> dict[str, Any]:
    column = data.column
    return {
        "file": data.files[0].label,
        "provenance": dict(data.files[0].provenance),
        "second": [{"file": f.label, "provenance": dict(f.provenance)} for f in data.files[1:]],
        "random_weights": any(file.random_weights for file in data.files),
        "axes": list(data.projection.axes),
        "method": data.projection.about,
        "colour": {"name": column.name, "kind": column.kind, "log": data.log} if column else None,
        "outputs": [str(path) for path in outputs],
        "points": _points(data),
    }


def _print(data: MapData, outputs: tuple[Path, ...]) -> None:
    console, column = stdout(), data.column
    if any(file.random_weights for file in data.files):
        console.print(RANDOM_WEIGHTS)
    twice = " in two files" if len(data.files) > 1 else ""
    axes = " and ".join(data.projection.axes)
    say(console, f"{len(data.files[0]):,} sources{twice}: {axes}")
    if column is not None:
        missing = f", {column.missing:,} without a value" if column.missing else ""
        joined = f", joined {escape(column.joined)}" if column.joined else ""
        log = ", logarithmic" if data.log else ""
        console.print(f"Coloured by {escape(column.name)} ({column.kind}{log}{joined}{missing})")
        if column.remark:
            say(console, f"[yellow]note[/] {escape(column.remark)}.")
    for path in outputs:
        say(console, f"Written: {escape(str(path))}")
