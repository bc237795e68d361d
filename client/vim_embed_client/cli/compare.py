"""`vim-embed compare`: models on the same sources, with paired intervals and a test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.markup import escape
from rich.table import Table

from vim_embed_client.cli.common import (
    RANDOM_WEIGHTS,
    json_option,
    pairing_options,
    print_json,
    say,
    stdout,
    tables,
)
from vim_embed_client.cli.remarks import other_options, remark_on_options, warn_of_labels
from vim_embed_client.cli.written_files import OutputPath, WritingCommand
from vim_embed_client.errors import InputError
from vim_embed_client.scoring.comparison import Difference, compare, remark
from vim_embed_client.scoring.embedding_files import EmbeddingFile, read_embeddings
from vim_embed_client.scoring.labels import Labelled
from vim_embed_client.scoring.metrics import METRICS
from vim_embed_client.scoring.mknn import PLATONIC_K
from vim_embed_client.scoring.pairing import pair_all, usable_rows
from vim_embed_client.scoring.table_files import (
    ResultTable,
    interval_text,
    number_text,
    p_text,
    provenance_notes,
    write_table,
)

METHOD = (
    "Intervals: jackknife that leaves out a twentieth of the sources at a time, the same for all "
    "models; that of mutual-knn differs a little from `vim-embed score`, which leaves out one. p "
    "of a paired t test, not corrected for the number of models."
)


def _models(
    ctx: click.Context, param: click.Parameter, value: tuple[str, ...]
) -> list[tuple[str, str, str]]:
    models = []
    for argument in value:
        name, _, files = argument.partition("=")
        first, comma, second = files.partition(",")
        if not (name and comma and first and second) or "," in second:
            raise click.BadParameter(f"{argument!r} is not of the form NAME=FIRST,SECOND")
        models.append((name, first, second))
    if len(models) < 2:
        raise click.BadParameter("give two models or more")
    names = [name for name, *_ in models]
    if again := next((name for name in names if names.count(name) > 1), None):
        raise click.BadParameter(f"the name {again!r} stands for several models")
    return models


@click.command("compare", cls=WritingCommand)
@click.argument("models", nargs=-1, callback=_models, metavar="NAME=FIRST,SECOND ...")
@click.option(
    "--metric", default="mutual-knn", show_default=True, type=click.Choice(METRICS),
    help="What is compared; mutual-knn is MKNN.",
)  # fmt: skip
@click.option(
    "-k", "--k", default=PLATONIC_K, show_default=True, type=click.IntRange(1),
    help="Number of neighbours, for metrics of neighbour lists.",
)  # fmt: skip
@click.option("--seed", default=0, show_default=True, help="Of the jackknife's groups.")
@click.option(
    "-o", "--output", "outputs", multiple=True, metavar="FILE", callback=tables,
    type=OutputPath(dir_okay=False),
    help="Also write the table: .csv, .tex (with booktabs) or .md; may be repeated.",
)  # fmt: skip
@pairing_options
@json_option
def compare_command(
    models: list[tuple[str, str, str]],
    metric: str,
    k: int,
    seed: int,
    outputs: tuple[Path, ...],
    pairing: dict[str, Any],
    drop_invalid: bool,
    as_json: bool,
) -> None:
    """Compare models on the same sources: is one's agreement higher?

    Each model has a name and two files of embeddings, as `vim-embed score` takes them; all files
    hold the same sources. The first model is the one that the others are compared with.
    """
    read = [read_embeddings(path, by_row=pairing["by_row"]) for _, *two in models for path in two]
    labels = [name for name, *two in models for _ in two]
    mislabelled = warn_of_labels(
        [Labelled(file=file, model=name) for name, file in zip(labels, read, strict=True)]
    )
    files = usable_rows(*pair_all(read, **pairing), drop=drop_invalid)
    named = [
        (name, files[2 * place].embeddings, files[2 * place + 1].embeddings)
        for place, (name, *_) in enumerate(models)
    ]
    try:
        found = compare(named, metric, k=k, seed=seed)
    except ValueError as error:
        raise InputError(f"the models cannot be compared: {error}") from None
    remarks = [*filter(None, [remark(metric), remark_on_options(files)])]
    for path in outputs:
        write_table(path, _table(found, files, [*remarks, *mislabelled]))
    if as_json:
        print_json(_report(found, files, mislabelled, outputs))
    else:
        _print(found, files, remarks, outputs)


def _report(
    found: Sequence[Difference],
    files: Sequence[EmbeddingFile],
    mislabelled: Sequence[str],
    outputs: Sequence[Path],
) -> dict[str, Any]:
    return {
        "models": [each.as_dict() for each in found],
        "files": [{"file": f.label, "provenance": dict(f.provenance)} for f in files],
        "random_weights": any(file.random_weights for file in files),
        "read_otherwise": other_options(files),
        "mislabelled": list(mislabelled),
        "outputs": [str(path) for path in outputs],
    }


def _print(
    found: Sequence[Difference],
    files: Sequence[EmbeddingFile],
    remarks: Sequence[str],
    outputs: Sequence[Path],
) -> None:
    console = stdout()
    if any(file.random_weights for file in files):
        console.print(RANDOM_WEIGHTS)
    first = found[0]
    at = "" if first.k is None else f" at k = {first.k}"
    say(console, f"{first.metric}{at}, {first.n:,} sources")
    table = Table("model", "value", "95 % interval", f"minus {escape(first.model)}", "95 %", "p")
    for each in found:
        table.add_row(*_cells(each))
    console.print(table)
    say(console, METHOD)
    for said in remarks:
        say(console, f"[yellow]{escape(said)}[/]")
    for path in outputs:
        say(console, f"Written: {escape(str(path))}")


def _cells(each: Difference) -> list[str]:
    return [
        each.model,
        number_text(each.value),
        interval_text(each.value_low, each.value_high),
        number_text(each.difference, "+.4f"),
        interval_text(each.low, each.high, "+.4f"),
        p_text(each.p_value),
    ]


def _table(
    found: Sequence[Difference], files: Sequence[EmbeddingFile], remarks: Sequence[str]
) -> ResultTable:
    first = found[0]
    at = "" if first.k is None else f" at k = {first.k}"
    return ResultTable(
        records=[each.as_dict() for each in found],
        head=["model", first.metric, "95 %", f"minus {first.model}", "95 %", "p"],
        rows=[_cells(each) for each in found],
        notes=[
            *provenance_notes(files),
            f"{first.metric}{at}, {first.n} sources. {METHOD}",
            *remarks,
        ],
    )
