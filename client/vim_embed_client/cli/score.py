"""`vim-embed score`: MKNN of two files against k, printed and drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from rich.markup import escape

from vim_embed_client.cli.common import (
    figure_path,
    json_option,
    metrics_option,
    pairing_options,
    print_json,
    say,
    stdout,
    style_option,
)
from vim_embed_client.cli.remarks import other_options
from vim_embed_client.cli.score_printing import (
    print_column,
    print_measured,
    print_recall,
    print_scores,
)
from vim_embed_client.cli.written_files import OutputPath, WritingCommand
from vim_embed_client.errors import InputError
from vim_embed_client.scoring.approximate import ApproximateSearch
from vim_embed_client.scoring.embedding_files import EmbeddingFile, read_embeddings
from vim_embed_client.scoring.metrics import (
    LIST_METRICS,
    METRICS,
    MetricScore,
    measure,
)
from vim_embed_client.scoring.mknn import (
    PLATONIC_K,
    Score,
    curve_ks,
    default_ks,
    score_curve,
    searched_ks,
)
from vim_embed_client.scoring.neighbour_lists import wide_k
from vim_embed_client.scoring.neighbours import NeighbourSearch
from vim_embed_client.scoring.pairing import pair, usable_rows
from vim_embed_client.scoring.repeated import Repeated
from vim_embed_client.scoring.repeats import without_repeats

if TYPE_CHECKING:
    from vim_embed_client.figures.columns import Column as Property

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


@click.command(cls=WritingCommand)
@click.argument("first", type=click.Path())
@click.argument("second", type=click.Path())
@click.option(
    "-k", "--k", "ks", callback=_ks, metavar="K,...",
    help="Numbers of neighbours, with commas.  [default: 1,2,5,10,20,50,100 as far as possible]",
)  # fmt: skip
@pairing_options
@click.option("--float64", is_flag=True, help="Compute in float64, whatever the files hold.")
@click.option(
    "--permutations", type=click.IntRange(1),
    help="Random pairings for the baseline.  [default: 200; for other metrics 39 from 20,000 "
    "sources on]",
)  # fmt: skip
@click.option("--seed", default=0, show_default=True, help="Of the permutations.")
@click.option(
    "--approximate", metavar="RECALL", type=click.FloatRange(0.5, 1),
    help="Find neighbours by faiss, at least this share of the true ones (0.99, say): for a "
    "million sources. The share is measured and printed.",
)  # fmt: skip
@metrics_option(f"Also measure by {', '.join(METRICS)}, or by all.")
@click.option(
    "--property", "properties", multiple=True, metavar="TABLE:COLUMN",
    help="Also measure whether neighbours agree in this column, as of `map --colour`; may be "
    "repeated.",
)  # fmt: skip
@click.option(
    "--id-column", default="id", show_default=True, metavar="NAME", help="Of the table's ids."
)
@click.option(
    "--figure", metavar="FILE", type=OutputPath(dir_okay=False),
    callback=figure_path, help="Also draw MKNN against k: .png, .pdf or .svg.",
)  # fmt: skip
@style_option
@json_option
def score(
    first: str,
    second: str,
    ks: tuple[int, ...] | None,
    pairing: dict[str, Any],
    drop_invalid: bool,
    float64: bool,
    permutations: int | None,
    seed: int,
    approximate: float | None,
    metrics: list[str],
    properties: tuple[str, ...],
    id_column: str,
    figure: Path | None,
    style: Path | None,
    as_json: bool,
) -> None:
    """Score how far two embeddings of the same sources agree (MKNN, and other metrics).

    FIRST and SECOND are .npy, .npz, .safetensors or .parquet files, as `vim-embed embed` and
    `vim-embed demo` write them; FILE:NAME takes one array, layer or column. Rows are paired by
    their ids where both files have them, else by position. platonic-universe's own k is 10.
    """
    if style and figure is None:
        raise click.UsageError("--style is of the figure: give --figure FILE too")
    read = (read_embeddings(argument, by_row=pairing["by_row"]) for argument in (first, second))
    *paired, how = pair(*read, **pairing)
    files = usable_rows(*paired, drop=drop_invalid)
    if float64 and approximate is not None:
        raise click.UsageError("--approximate finds neighbours in float32: leave out --float64")
    if float64:
        files = tuple(replace(f, embeddings=f.embeddings.astype(np.float64)) for f in files)
    options: dict[str, Any] = {"permutations": permutations, "seed": seed}
    wanted, curve_at = _wanted_ks(len(files[0]), ks, drawn=bool(figure))
    k = _headline_k(wanted)
    find = None if approximate is None else ApproximateSearch(approximate, seed=seed)
    searches = [NeighbourSearch(file.embeddings, find) for file in files]
    by_lists = bool(properties or set(metrics) & set(LIST_METRICS))
    for search in searches:
        search.find(_all_ks(len(search), curve_at, k if by_lists else None))
    curve = score_curve(searches[0], searches[1], curve_at, **options)
    scores = [each for each in curve if each.k in wanted]
    measured = _measured(files, searches, metrics, k=k, **options)
    columns = _columns(properties, files[0], id_column, pairing["match"])
    for argument, column in zip(properties, columns, strict=True):
        measured += _agreements(files, searches, argument, column, k=k, **options)
    recalls = find.recalls[: len(files)] if find else []
    distinct = without_repeats(files)
    repeats = Repeated(files, distinct, ks, find, options) if distinct is not files else None
    if figure is not None:
        _draw(files, scores, curve, figure, style)
    if as_json:
        report = _report(files, scores, repeats, how)
        report["metrics"] = [score.as_dict() for score in measured]
        report["properties"] = [
            {"name": each.name, "joined": each.joined or None, "without_value": each.missing}
            for each in columns
        ]
        report["approximate"] = [recall.as_dict() for recall in recalls]
        print_json(report | {"figure": figure and str(figure)})
    else:
        print_scores(files, scores, repeats, how)
        for file, recall in zip(files, recalls, strict=False):
            print_recall(file, recall)
        for column in columns:
            print_column(column, len(files[0]))
        if measured:
            print_measured(measured)
        if figure is not None:
            say(stdout(), f"Written: {escape(str(figure))}")


def _all_ks(n: int, ks: Sequence[int], list_k: int | None) -> set[int]:
    """All numbers of neighbours that are asked for, so that distances are computed once."""
    return searched_ks(ks, n) | (set() if list_k is None else {wide_k(list_k, n)})


def _measured(
    files: Sequence[EmbeddingFile],
    searches: Sequence[NeighbourSearch],
    names: Sequence[str],
    **options: Any,
) -> list[MetricScore]:
    first, second = searches
    try:
        return measure(first, second, names, **options) if names else []
    except ValueError as error:
        labels = " and ".join(file.label for file in files)
        raise InputError(f"{labels} cannot be measured: {error}") from None


def _columns(
    arguments: Sequence[str], file: EmbeddingFile, id_column: str, match: float | None
) -> list[Property]:
    """Columns of catalogues that go by the ids or positions of the first file."""
    from vim_embed_client.figures.columns import read_column

    return [
        read_column(each, file, id_column=id_column, match=match, ids_first=True)
        for each in arguments
    ]


def _agreements(
    files: Sequence[EmbeddingFile],
    searches: Sequence[NeighbourSearch],
    argument: str,
    column: Property,
    **options: Any,
) -> list[MetricScore]:
    """Of each file, in the column."""
    from vim_embed_client.scoring.catalogue_property import property_agreement

    try:
        return [
            property_agreement(
                search, column.values, name=f"{column.name}: {file.label}", **options
            )
            for file, search in zip(files, searches, strict=True)
        ]
    except ValueError as error:
        raise InputError(f"{argument} cannot be measured: {error}") from None


def _wanted_ks(n: int, ks: Sequence[int] | None, *, drawn: bool) -> tuple[list[int], list[int]]:
    """The ks asked for, and those of the figure's curve."""
    wanted = list(ks or default_ks(n))
    if wanted[-1] >= n:
        raise InputError(
            f"k = {wanted[-1]} needs more than {wanted[-1]} sources, and there are {n}: "
            f"ask for -k {n - 1} or less"
        )
    between = [k for k in curve_ks(n) if all(abs(k / other - 1) > 0.2 for other in wanted)]
    return wanted, [*wanted, *between] if drawn else wanted


def _headline_k(ks: Sequence[int]) -> int:
    """platonic-universe's k, else the nearest of those asked for."""
    return min(ks, key=lambda k: abs(k - PLATONIC_K))


def _headline(scores: Sequence[Score]) -> Score:
    """The score at platonic-universe's k, else at the nearest k asked for."""
    return min(scores, key=lambda s: abs(s.k - PLATONIC_K))


def _draw(
    files: Sequence[EmbeddingFile],
    scores: Sequence[Score],
    curve: Sequence[Score],
    path: Path,
    style: Path | None,
) -> None:
    from vim_embed_client.figures.curve import curve_figure
    from vim_embed_client.figures.style import save, styled

    with styled(style):
        save(curve_figure(curve, _headline(scores), files), path)


def _report(
    files: Sequence[EmbeddingFile], scores: Sequence[Score], repeats: Repeated | None, how: str
) -> dict[str, Any]:
    return {
        "files": [_about(file) for file in files],
        "n": len(files[0]),
        "paired": how,
        "read_otherwise": other_options(files),
        "random_weights": any(file.random_weights for file in files),
        "scores": [score.as_dict() for score in scores],
        "identical_rows": repeats.files if repeats else [],
        "without_identical_rows": {
            "n": repeats.n,
            "scores": [score.as_dict() for score in repeats.scores],
        }
        if repeats
        else None,
        "method": METHOD,
    }


def _about(file: EmbeddingFile) -> dict[str, Any]:
    dim = file.embeddings.shape[1]
    return {"file": file.label, "dim": dim, "provenance": dict(file.provenance)}
