"""`vim-embed table`: many models and surveys, every pair of surveys scored."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import click
from rich.markup import escape
from rich.table import Table

from vim_embed_client.cli.common import (
    FIGURES,
    RANDOM_WEIGHTS,
    json_option,
    metrics_option,
    pairing_options,
    print_json,
    say,
    stdout,
    style_option,
    table_or_figure,
)
from vim_embed_client.cli.remarks import other_options, remark_on_options, warn_of_labels
from vim_embed_client.cli.written_files import OutputPath, WritingCommand
from vim_embed_client.errors import InputError
from vim_embed_client.scoring.embedding_files import EmbeddingFile
from vim_embed_client.scoring.metrics import METRICS
from vim_embed_client.scoring.mknn import PLATONIC_K
from vim_embed_client.scoring.study import Study, StudyScore, read_study, score_study
from vim_embed_client.scoring.table_files import (
    ResultTable,
    interval_text,
    number_text,
    provenance_notes,
    write_table,
)

METHOD = (
    "Interval: 95 %, jackknife that leaves out a twentieth of the sources at a time; that of "
    "mutual-knn differs a little from `vim-embed score`, which leaves out one. Calibrated: 0 where "
    "5 % of random pairings score higher, 1 for perfect agreement (arXiv 2602.14486). p: of random "
    "pairings."
)
_HEAD = ("surveys", "metric", "model", "n", "value", "95 % interval", "calibrated", "p")


def _sizes(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> dict[str, float]:
    sizes = {}
    for argument in value:
        model, _, number = argument.partition("=")
        try:
            sizes[model] = float(number)
        except ValueError:
            raise click.BadParameter(f"{argument!r} is not of the form MODEL=MILLIONS") from None
        if not (model and 0 < sizes[model] < float("inf")):
            raise click.BadParameter(f"{argument!r} is not of the form MODEL=MILLIONS")
    return sizes


@click.command("table", cls=WritingCommand)
@click.argument("files", nargs=-1, required=True, metavar="PATTERN|MODEL:SURVEY=FILE ...")
@click.option(
    "-o", "--output", "outputs", multiple=True, metavar="FILE", callback=table_or_figure,
    type=OutputPath(dir_okay=False),
    help="Table to write (.csv, .tex, .md), or figure of score against size (.png, .pdf, .svg); "
    "may be repeated.",
)  # fmt: skip
@metrics_option(f"Metrics to score by, of {', '.join(METRICS)}, or all.", default="mutual-knn")
@click.option(
    "-k", "--k", default=PLATONIC_K, show_default=True, type=click.IntRange(1),
    help="Number of neighbours, for metrics of neighbour lists.",
)  # fmt: skip
@click.option(
    "--size", "sizes", multiple=True, callback=_sizes, metavar="MODEL=MILLIONS",
    help="Parameters of a model in millions, for the figure; may be repeated.",
)  # fmt: skip
@click.option(
    "--permutations", type=click.IntRange(1),
    help="Random pairings for p and the calibrated value.  [default: 200; 39 from 20,000 sources "
    "on]",
)  # fmt: skip
@click.option("--seed", default=0, show_default=True, help="Of the random pairings and groups.")
@pairing_options
@style_option
@json_option
def table_command(
    files: tuple[str, ...],
    outputs: tuple[Path, ...],
    metrics: list[str],
    k: int,
    sizes: dict[str, float],
    permutations: int | None,
    seed: int,
    pairing: dict[str, Any],
    drop_invalid: bool,
    style: Path | None,
    as_json: bool,
) -> None:
    """Score many models on many surveys: every two surveys, for every model.

    A quoted PATTERN such as 'out/{model}_{survey}.parquet' finds the files of all models and
    surveys; MODEL:SURVEY=FILE names one. All models of two surveys are scored on the same sources.
    A model that lacks a survey is named.
    """
    figures = [path for path in outputs if path.suffix.lower() in FIGURES]
    if bool(sizes) != bool(figures):
        raise click.UsageError(
            "a figure needs --size of the models, and --size needs a figure (-o)"
        )
    if style and not figures:
        raise click.UsageError("--style is of a figure: give -o FILE.pdf too")
    study = read_study(files)
    if figures and (unknown := [model for model in study.models if model not in sizes]):
        raise click.UsageError(f"how large is {', '.join(unknown)}? give --size {unknown[0]}=...")
    if odd := [model for model in sizes if model not in study.models]:
        raise click.UsageError(f"--size {odd[0]}: the models are {', '.join(study.models)}")
    scores = score_study(
        study, metrics, k=k, permutations=permutations, seed=seed,
        drop_invalid=drop_invalid, **pairing,
    )  # fmt: skip
    if not scores:
        raise InputError("no model has two surveys: " + "; ".join(_lacks(study)))
    mislabelled = warn_of_labels([one for score in scores for one in score.labelled()])
    remarks = [*filter(None, [remark_on_options(_files(scores))])]
    table = _table(study, scores, [*remarks, *mislabelled])
    for path in outputs:
        if path in figures:
            _draw(path, scores, sizes, style)
        else:
            write_table(path, table)
    if as_json:
        print_json(_report(study, scores, mislabelled, outputs))
    else:
        _print(study, scores, table, remarks, outputs)


def _draw(
    path: Path, scores: Sequence[StudyScore], sizes: dict[str, float], style: Path | None
) -> None:
    from vim_embed_client.figures.sizes import sizes_figure
    from vim_embed_client.figures.style import save, styled

    with styled(style):
        save(sizes_figure(scores, sizes), path)


def _lacks(study: Study) -> list[str]:
    return [f"{model} has no file for {survey}" for model, survey in study.missing()]


def _files(scores: Sequence[StudyScore]) -> list[EmbeddingFile]:
    """Each file once."""
    return list({file.label: file for score in scores for file in score.files}.values())


def _table(study: Study, scores: Sequence[StudyScore], remarks: Sequence[str]) -> ResultTable:
    rows = []
    for each in scores:
        score = each.score
        at = "" if score.k is None else f", k = {score.k}"
        rows.append(
            [
                " and ".join(each.surveys),
                score.metric + at,
                each.model,
                str(score.n),
                number_text(score.value),
                interval_text(score.low, score.high),
                number_text(score.calibrated),
                number_text(score.p_value),
            ]
        )
    lacks = [f"MISSING: {line}" for line in _lacks(study)]
    return ResultTable(
        records=[each.as_dict() for each in scores],
        head=_HEAD,
        rows=rows,
        notes=[
            *provenance_notes(_files(scores)),
            *lacks,
            METHOD,
            *_least_p(scores),
            *remarks,
        ],
    )


def _least_p(scores: Sequence[StudyScore]) -> list[str]:
    """How small a p the random pairings can show."""
    counts = sorted({each.score.permutations for each in scores if each.score.permutations})
    return [f"p by {n} random pairings is at least {1 / (n + 1):.4f}" for n in counts]


def _report(
    study: Study,
    scores: Sequence[StudyScore],
    mislabelled: Sequence[str],
    outputs: Sequence[Path],
) -> dict[str, Any]:
    files = _files(scores)
    return {
        "scores": [each.as_dict() for each in scores],
        "missing": [{"model": model, "survey": survey} for model, survey in study.missing()],
        "files": [{"file": f.label, "provenance": dict(f.provenance)} for f in files],
        "random_weights": any(file.random_weights for file in files),
        "read_otherwise": other_options(files),
        "mislabelled": list(mislabelled),
        "outputs": [str(path) for path in outputs],
        "method": METHOD,
    }


def _print(
    study: Study,
    scores: Sequence[StudyScore],
    table: ResultTable,
    remarks: Sequence[str],
    outputs: Sequence[Path],
) -> None:
    console = stdout()
    if any(file.random_weights for file in _files(scores)):
        console.print(RANDOM_WEIGHTS)
    for (surveys, metric), rows in groupby(table.rows, key=lambda row: (row[0], row[1])):
        printed = Table(*table.head[2:], title=escape(f"{surveys}: {metric}"), title_justify="left")
        for row in rows:
            printed.add_row(*map(escape, row[2:]))
        console.print(printed)
    say(console, METHOD)
    for said in remarks:
        say(console, f"[yellow]{escape(said)}[/]")
    for line in _lacks(study):
        say(console, f"[yellow]Missing: {escape(line)}.[/]")
    for path in outputs:
        say(console, f"Written: {escape(str(path))}")
