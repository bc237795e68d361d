"""`vim-embed layers`: every layer of one file scored with every layer of another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.markup import escape

from vim_embed_client.cli.common import (
    FIGURES,
    RANDOM_WEIGHTS,
    json_option,
    pairing_options,
    print_json,
    say,
    stdout,
    style_option,
    table_or_figure,
)
from vim_embed_client.cli.written_files import OutputPath, WritingCommand
from vim_embed_client.scoring.layers import LayerScores, score_layers
from vim_embed_client.scoring.mknn import PLATONIC_K
from vim_embed_client.scoring.table_files import ResultTable, provenance_notes, write_table


@click.command("layers", cls=WritingCommand)
@click.argument("first", type=click.Path())
@click.argument("second", type=click.Path())
@click.option(
    "-o", "--output", "outputs", multiple=True, metavar="FILE", callback=table_or_figure,
    type=OutputPath(dir_okay=False),
    help="Heat map to draw (.png, .pdf, .svg), or table (.csv, .tex, .md); may be repeated.",
)  # fmt: skip
@click.option(
    "-k", "--k", default=PLATONIC_K, show_default=True, type=click.IntRange(1),
    help="Number of neighbours.",
)  # fmt: skip
@pairing_options
@style_option
@json_option
def layers_command(
    first: str,
    second: str,
    outputs: tuple[Path, ...],
    k: int,
    pairing: dict[str, Any],
    drop_invalid: bool,
    style: Path | None,
    as_json: bool,
) -> None:
    """Score every layer of one file with every layer of another (MKNN).

    FIRST and SECOND are files of `vim-embed embed --layers`; the same file twice compares the
    layers of one model. FILE:NAME is one layer.
    """
    figures = [path for path in outputs if path.suffix.lower() in FIGURES]
    if style and not figures:
        raise click.UsageError("--style is of a figure: give -o FILE.pdf too")
    scores = score_layers(first, second, k=k, drop_invalid=drop_invalid, **pairing)
    for path in outputs:
        if path in figures:
            _draw(path, scores, style)
        else:
            write_table(path, _table(scores))
    if as_json:
        files = [scores.first, scores.second]
        about = [{"file": f.label, "provenance": dict(f.provenance)} for f in files]
        print_json(
            {**scores.as_dict(), "files": about, "random_weights": _random(scores)}
            | {"outputs": [str(path) for path in outputs]}
        )
    else:
        _print(scores, outputs)


def _random(scores: LayerScores) -> bool:
    return scores.first.random_weights or scores.second.random_weights


def _draw(path: Path, scores: LayerScores, style: Path | None) -> None:
    from vim_embed_client.figures.heat_map import heat_map_figure
    from vim_embed_client.figures.style import save, styled

    with styled(style):
        save(heat_map_figure(scores), path)


def _table(scores: LayerScores) -> ResultTable:
    head = "layer"
    while head in scores.second_layers:
        head += " of the first file"
    pairs = zip(scores.first_layers, scores.values, strict=True)
    rows = [
        (layer, dict(zip(scores.second_layers, values, strict=True))) for layer, values in pairs
    ]
    about = (
        f"MKNN at k = {scores.k} of {scores.n} sources, paired {scores.paired}; chance "
        f"{scores.chance:.4f}. Rows: layers of {scores.first.path}; columns: of "
        f"{scores.second.path}."
    )
    return ResultTable(
        records=[{head: layer} | values for layer, values in rows],
        head=[head, *scores.second_layers],
        rows=[[layer, *(f"{value:.4f}" for value in values.values())] for layer, values in rows],
        notes=[*provenance_notes([scores.first, scores.second]), about],
    )


def _print(scores: LayerScores, outputs: tuple[Path, ...]) -> None:
    console = stdout()
    if _random(scores):
        console.print(RANDOM_WEIGHTS)
    first, second = (escape(str(file.path)) for file in (scores.first, scores.second))
    say(
        console,
        f"{len(scores.first_layers)} layers of {first} with "
        f"{len(scores.second_layers)} of {second}: MKNN at k = {scores.k}, "
        f"{scores.n:,} sources, paired {scores.paired}; chance {scores.chance:.4f}.",
    )
    shown = np.where(scores.others, scores.values, -1.0)
    for layer, values in zip(scores.first_layers, shown, strict=True):
        best = int(values.argmax())
        say(
            console,
            f"{escape(layer)}: most with {escape(scores.second_layers[best])}, {values[best]:.4f}",
        )
    for path in outputs:
        say(console, f"Written: {escape(str(path))}")
