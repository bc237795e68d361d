"""What `vim-embed score` prints: tables of MKNN and other metrics, and what to know of them."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Column, Table

from vim_embed_client.cli.common import RANDOM_WEIGHTS, say, stdout
from vim_embed_client.cli.remarks import remark_on_options
from vim_embed_client.scoring.approximate import Recall
from vim_embed_client.scoring.embedding_files import EmbeddingFile
from vim_embed_client.scoring.metrics import LEAST_FOR_LINEAR_R2, MetricScore
from vim_embed_client.scoring.mknn import LEAST_SOURCES, PLATONIC_K, Score
from vim_embed_client.scoring.repeated import Repeated

if TYPE_CHECKING:
    from vim_embed_client.figures.columns import Column as Property

_BESIDE_MKNN = ", so that it differs a little from that of MKNN above"
_MARK = "*"  # of the line of platonic-universe's k
_LEAST_NAME = 8  # letters of a metric's name in a line


def print_scores(
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


def print_recall(file: EmbeddingFile, recall: Recall) -> None:
    missed = " [yellow](fewer than wanted)[/]" if recall.recall < recall.wanted else ""
    say(
        stdout(),
        f"Approximate neighbours of {escape(file.label)}: {recall.recall:.4f} of the {recall.k} "
        f"nearest found, on {recall.sample:,} sources{missed}.",
    )


def print_column(column: Property, n: int) -> None:
    joined = f", joined {column.joined}" if column.joined else ""
    without = f"; {column.missing:,} have none and are left out" if column.missing else ""
    known = n - column.missing
    say(stdout(), f"{escape(column.name)}: {known:,} of {n:,} sources{escape(joined)}{without}.")
    if column.remark:
        say(stdout(), f"[yellow]note[/] {escape(column.remark)}.")


def print_measured(scores: Sequence[MetricScore]) -> None:
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


def _range(low: float, high: float) -> str:
    return f"{low:.4f} to {high:.4f}" if low < high else f"{low:.4f}"
