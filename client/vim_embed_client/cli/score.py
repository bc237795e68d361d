"""`vim-embed score`: MKNN of two files against k, printed and drawn."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from rich.markup import escape
from rich.table import Column, Table

from vim_embed_client.cli.common import (
    RANDOM_WEIGHTS,
    figure_path,
    json_option,
    metrics_option,
    pairing_options,
    print_json,
    say,
    stdout,
    style_option,
)
from vim_embed_client.cli.remarks import other_options, remark_on_options
from vim_embed_client.cli.written_files import OutputPath, WritingCommand
from vim_embed_client.errors import InputError
from vim_embed_client.scoring.approximate import ApproximateSearch, Recall
from vim_embed_client.scoring.embedding_files import EmbeddingFile, read_embeddings
from vim_embed_client.scoring.metrics import (
    LEAST_FOR_LINEAR_R2,
    LIST_METRICS,
    METRICS,
    MetricScore,
    measure,
)
from vim_embed_client.scoring.mknn import (
    LEAST_SOURCES,
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
from vim_embed_client.scoring.repeats import describe, find_repeats, without_repeats

if TYPE_CHECKING:
    from vim_embed_client.figures.columns import Column as Property

METHOD = {
    "mknn": "mean overlap of cosine k-nearest neighbours, self excluded",
    "interval": "mknn ± 1.96 delete-one jackknife standard errors (Efron and Stein 1981)",
    "permuted": "the rows of one file paired at random; mean, deviation and central 95 %",
}
_BESIDE_MKNN = ", so that it differs a little from that of MKNN above"
_MARK = "*"  # of the line of platonic-universe's k
_LEAST_NAME = 8  # letters of a metric's name in a line


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
        _print(files, scores, repeats, how)
        for file, recall in zip(files, recalls, strict=False):
            _print_recall(file, recall)
        for column in columns:
            _print_column(column, len(files[0]))
        if measured:
            _print_measured(measured)
        if figure is not None:
            say(stdout(), f"Written: {escape(str(figure))}")


def _all_ks(n: int, ks: Sequence[int], list_k: int | None) -> set[int]:
    """All numbers of neighbours that are asked for, so that distances are computed once."""
    return searched_ks(ks, n) | (set() if list_k is None else {wide_k(list_k, n)})


def _print_recall(file: EmbeddingFile, recall: Recall) -> None:
    missed = " [yellow](fewer than wanted)[/]" if recall.recall < recall.wanted else ""
    say(
        stdout(),
        f"Approximate neighbours of {escape(file.label)}: {recall.recall:.4f} of the {recall.k} "
        f"nearest found, on {recall.sample:,} sources{missed}.",
    )


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


def _print_column(column: Property, n: int) -> None:
    joined = f", joined {column.joined}" if column.joined else ""
    without = f"; {column.missing:,} have none and are left out" if column.missing else ""
    known = n - column.missing
    say(stdout(), f"{escape(column.name)}: {known:,} of {n:,} sources{escape(joined)}{without}.")


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


def _print_measured(scores: Sequence[MetricScore]) -> None:
    console = stdout()
    console.print(_measured_table(scores, console.width))
    beside = _BESIDE_MKNN if any(score.metric == "mutual-knn" for score in scores) else ""
    say(
        console,
        "Interval: jackknife that leaves out a twentieth of the sources at a time"
        f"{beside}. Calibrated: 0 where 5 % of random pairings score higher, 1 for perfect "
        "agreement (arXiv 2602.14486).",
    )
    for remark in _without_interval(scores):
        say(console, f"[yellow]{escape(remark)}[/]")


def _measured_table(scores: Sequence[MetricScore], width: int) -> Table:
    """A row for each metric. Names are folded so far that the other columns lose no letter."""
    heads = ("k", "value", "95 % interval", "permuted, 95 %", "calibrated", "p")
    rows = [_measured_cells(score) for score in scores]
    columns = zip(heads, *rows, strict=True)
    borders = 3 * len(heads) + 4
    room = max(width - borders - sum(_narrowest(*column) for column in columns), _LEAST_NAME)
    table = Table(Column("metric", no_wrap=True))
    for head in heads:
        table.add_column(head, no_wrap=head.split()[0] == head)
    for score, cells in zip(scores, rows, strict=True):
        parts = score.metric.replace(": ", ":\n").splitlines()
        name = "\n".join(line for part in parts for line in textwrap.wrap(part, room))
        table.add_row(escape(name), *cells)
    return table


def _measured_cells(score: MetricScore) -> list[str]:
    return [
        "" if score.k is None else str(score.k),
        f"{score.value:.4f}",
        _range(score.low, score.high) if score.has_interval else "none",
        _range(score.permuted_low, score.permuted_high),
        "none" if math.isnan(score.calibrated) else f"{score.calibrated:.4f}",
        f"{score.p_value:.4f}",
    ]


def _narrowest(head: str, *cells: str) -> int:
    """Letters in a line of a column whose heading has a word a line, and whose ranges have two."""
    lines = [*head.split(), *(line for cell in cells for line in cell.rsplit(" ", 1))]
    return max(map(len, lines))


def _without_interval(scores: Sequence[MetricScore]) -> Iterator[str]:
    """Why metrics have none."""
    without, n = [score.metric for score in scores if not score.has_interval], scores[0].n
    if n < LEAST_SOURCES:
        yield f"{n} sources are too few for an interval: embed {LEAST_SOURCES} or more."
        return
    if n < LEAST_FOR_LINEAR_R2 and "linear-r2" in without:
        without.remove("linear-r2")
        least = f"embed {LEAST_FOR_LINEAR_R2} or more"
        yield f"{n} sources are too few for an interval of linear-r2: {least}."
    if without:
        yield (
            f"No interval for {', '.join(without)}: so few values differ that without a twentieth "
            "of the sources all may be alike."
        )


class Repeated:
    """What is said of sources that equal another one in a file, and the scores without them.

    remarks: a line for each file that has some. n: the sources that are left. scores: of these at
    the same k, as far as they are enough.
    """

    def __init__(
        self,
        files: Sequence[EmbeddingFile],
        distinct: Sequence[EmbeddingFile],
        ks: Sequence[int] | None,
        find: ApproximateSearch | None,
        options: dict[str, Any],
    ) -> None:
        found = [(file, find_repeats(file.embeddings)) for file in files]
        self.files = [
            {"file": file.label, "rows": repeats.rows, "groups": repeats.groups}
            for file, repeats in found
        ]
        self.remarks = [describe(file, repeats) for file, repeats in found if repeats.groups]
        self.n = len(distinct[0])
        wanted = [k for k in ks or default_ks(self.n) if k < self.n]
        self.scores: list[Score] = []
        if wanted:
            searches = [NeighbourSearch(file.embeddings, find) for file in distinct]
            self.scores = score_curve(searches[0], searches[1], wanted, **options)


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


def _print(
    files: Sequence[EmbeddingFile], scores: Sequence[Score], repeats: Repeated | None, how: str
) -> None:
    console = stdout()
    for file in files:
        rows, dim = file.embeddings.shape
        say(console, f"{escape(file.label)}: {rows:,} × {dim} ({escape(file.origin)})")
    say(console, f"Paired {how}.")
    if any(file.random_weights for file in files):
        console.print(RANDOM_WEIGHTS)
    if said := remark_on_options(files):
        say(console, f"[yellow]{escape(said)}[/]")
    console.print(_table(scores))
    if any(score.k == PLATONIC_K for score in scores):
        say(console, f"{_MARK} k = {PLATONIC_K}: the number that platonic-universe gives.")
    elif len(files[0]) <= PLATONIC_K:
        say(
            console,
            f"[yellow]k = {PLATONIC_K}, which is compared elsewhere, needs more than {PLATONIC_K} "
            f"sources, and there are {len(files[0])}: no result for a paper.[/]",
        )
    say(
        console,
        "Interval: jackknife that leaves out one source at a time. Permuted: "
        f"{scores[0].permutations} random pairings, "
        f"so p is at least {1 / (1 + scores[0].permutations):.4f}.",
    )
    for remark in _remarks(scores):
        say(console, f"[yellow]{remark}[/]")
    if repeats:
        _print_repeats(repeats)


def _remarks(scores: Sequence[Score]) -> Iterator[str]:
    """What makes the numbers say less than they seem to."""
    n = scores[0].n
    if n < LEAST_SOURCES:
        yield (
            f"{n} sources are too few for an interval: embed {LEAST_SOURCES} or more, and "
            "hundreds for a result."
        )
    elif not scores[-1].has_interval:
        yield (
            f"At k = {scores[-1].k}, (nearly) all of {n} sources are neighbours, whatever the "
            "files: there is no interval."
        )
    if worst := max(score.tied for score in scores):
        yield (
            f"Ties: up to {worst:.1%} of the neighbour lists end amid equal distances, so that "
            "the order of the rows decides. Identical rows are named below if there are any; "
            "--float64 tells nearly parallel rows apart."
        )


def _print_repeats(repeats: Repeated) -> None:
    console = stdout()
    for remark in repeats.remarks:
        say(console, f"[yellow]{escape(remark)}[/]")
    if repeats.scores:
        say(console, f"Without them (the first of each group stays), {repeats.n:,} sources:")
        console.print(_table(repeats.scores))
    else:
        say(console, f"Without them, {repeats.n:,} sources are left: too few to score.")


def _table(scores: Sequence[Score]) -> Table:
    table = Table(
        Column("k", justify="right"), "MKNN", "95 % interval", "chance", "permuted, 95 %", "p"
    )
    for score in scores:
        table.add_row(*_cells(score))
    return table


def _range(low: float, high: float) -> str:
    return f"{low:.4f} to {high:.4f}" if low < high else f"{low:.4f}"


def _cells(score: Score) -> list[str]:
    mine = score.k == PLATONIC_K
    cells = [
        str(score.k),
        f"{score.mknn:.4f}",
        _range(score.low, score.high) if score.has_interval else "none",
        f"{score.chance:.4f}",
        _range(score.permuted_low, score.permuted_high),
        f"{score.p_value:.4f}",
    ]
    if not mine:
        return cells
    cells[0] = f"{_MARK} {cells[0]}"
    return [f"[bold]{cell}[/]" for cell in cells]
