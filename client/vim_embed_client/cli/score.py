"""`vim-embed score`: MKNN of two files against k, printed and drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.markup import escape
from rich.table import Table

from vim_embed_client.cli.common import (
    RANDOM_WEIGHTS,
    figure_path,
    json_option,
    pairing_options,
    print_json,
    say,
    stdout,
)
from vim_embed_client.errors import InputError
from vim_embed_client.scoring.embedding_files import EmbeddingFile, read_embeddings
from vim_embed_client.scoring.mknn import PLATONIC_K, Score, curve_ks, default_ks, score_curve
from vim_embed_client.scoring.pairing import pair, usable_rows

METHOD = {
    "mknn": "mean overlap of cosine k-nearest neighbours, self excluded",
    "interval": "mknn ± 1.96 delete-one jackknife standard errors (Efron and Stein 1981)",
    "permuted": "the rows of one file paired at random; mean, deviation and central 95 %",
}


def _ks(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    try:
        ks = sorted({int(k) for k in value.split(",")})
    except ValueError:
        raise click.BadParameter(f"{value!r} is not of the form 10 or 1,5,10") from None
    if ks[0] < 1:
        raise click.BadParameter("k must be at least 1")
    return tuple(ks)


@click.command()
@click.argument("first", type=click.Path())
@click.argument("second", type=click.Path())
@click.option(
    "-k", "--k", "ks", callback=_ks, metavar="K,...",
    help="Numbers of neighbours, with commas.  [default: 1,2,5,10,20,50,100 as far as possible]",
)  # fmt: skip
@pairing_options
@click.option("--float64", is_flag=True, help="Compute in float64, whatever the files hold.")
@click.option(
    "--permutations", default=200, show_default=True, type=click.IntRange(1),
    help="Random pairings for the baseline.",
)  # fmt: skip
@click.option("--seed", default=0, show_default=True, help="Of the permutations.")
@click.option(
    "--figure", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False),
    callback=figure_path, help="Also draw MKNN against k: .png, .pdf or .svg.",
)  # fmt: skip
@json_option
def score(
    first: str,
    second: str,
    ks: tuple[int, ...] | None,
    by_row: bool,
    common: bool,
    drop_invalid: bool,
    float64: bool,
    permutations: int,
    seed: int,
    figure: Path | None,
    as_json: bool,
) -> None:
    """Score how far two embeddings of the same sources agree (MKNN).

    FIRST and SECOND are .npy, .npz, .safetensors or .parquet files, as `vim-embed embed` and
    `vim-embed demo` write them; FILE:NAME takes one array, layer or column. Rows are paired by
    their ids where both files have them, else by position. platonic-universe's own k is 10.
    """
    paired = pair(read_embeddings(first), read_embeddings(second), by_row=by_row, common=common)
    files = usable_rows(*paired, drop=drop_invalid)
    if float64:
        files = tuple(replace(f, embeddings=f.embeddings.astype(np.float64)) for f in files)
    scores, curve = _scores(files, ks, permutations=permutations, seed=seed, drawn=bool(figure))
    if figure is not None:
        _draw(files, scores, curve, figure)
    if as_json:
        print_json(_report(files, scores, figure))
    else:
        _print(files, scores)


def _scores(
    files: Sequence[EmbeddingFile], ks: Sequence[int] | None, *, drawn: bool, **options: Any
) -> tuple[list[Score], list[Score]]:
    """The scores at the ks asked for, and those of the figure's curve, all in one pass."""
    first, second = files
    n = len(first)
    wanted = list(ks or default_ks(n))
    if wanted[-1] >= n:
        raise InputError(
            f"k = {wanted[-1]} needs more than {wanted[-1]} sources, and there are {n}: "
            f"ask for -k {n - 1} or less"
        )
    between = [k for k in curve_ks(n) if all(abs(k / other - 1) > 0.2 for other in wanted)]
    curve = [*wanted, *between] if drawn else wanted
    found = score_curve(first.embeddings, second.embeddings, curve, **options)
    return [s for s in found if s.k in wanted], found


def _headline(scores: Sequence[Score]) -> Score:
    """The score at platonic-universe's k, else at the nearest k asked for."""
    return min(scores, key=lambda s: abs(s.k - PLATONIC_K))


def _draw(
    files: Sequence[EmbeddingFile], scores: Sequence[Score], curve: Sequence[Score], path: Path
) -> None:
    from vim_embed_client.figures.curve import curve_figure
    from vim_embed_client.figures.style import save

    save(curve_figure(curve, _headline(scores), files), path)


def _report(
    files: Sequence[EmbeddingFile], scores: Sequence[Score], figure: Path | None
) -> dict[str, Any]:
    return {
        "files": [_about(file) for file in files],
        "n": len(files[0]),
        "random_weights": any(file.random_weights for file in files),
        "scores": [score.as_dict() for score in scores],
        "method": METHOD,
        "figure": str(figure) if figure else None,
    }


def _about(file: EmbeddingFile) -> dict[str, Any]:
    dim = file.embeddings.shape[1]
    return {"file": file.label, "dim": dim, "provenance": dict(file.provenance)}


def _print(files: Sequence[EmbeddingFile], scores: Sequence[Score]) -> None:
    console = stdout()
    for file in files:
        rows, dim = file.embeddings.shape
        say(console, f"{escape(file.label)}: {rows:,} × {dim} ({escape(file.origin)})")
    if any(file.random_weights for file in files):
        console.print(RANDOM_WEIGHTS)
    table = Table("k", "MKNN", "95 % interval", "chance", "permuted, 95 %", "p")
    for score in scores:
        table.add_row(*_cells(score))
    console.print(table)
    say(
        console,
        f"Interval: jackknife over sources. Permuted: {scores[0].permutations} random pairings, "
        f"so p is at least {1 / (1 + scores[0].permutations):.4f}.",
    )


def _cells(score: Score) -> list[str]:
    mine = score.k == PLATONIC_K
    cells = [
        str(score.k),
        f"{score.mknn:.4f}",
        f"{score.low:.4f} to {score.high:.4f}",
        f"{score.chance:.4f}",
        f"{score.permuted_low:.4f} to {score.permuted_high:.4f}",
        f"{score.p_value:.4f}",
    ]
    return [f"[bold]{cell}[/]" if mine else cell for cell in cells]
