"""`vim-embed neighbours`: a sheet of images, each beside its nearest neighbours."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from rich.markup import escape

from vim_embed_client.cli.common import (
    RANDOM_WEIGHTS,
    json_option,
    pairing_options,
    print_json,
    say,
    sheet_path,
    stdout,
)
from vim_embed_client.cli.written_files import OutputPath, WritingCommand
from vim_embed_client.errors import InputError
from vim_embed_client.paths import not_there
from vim_embed_client.scoring.embedding_files import EmbeddingFile, read_embeddings
from vim_embed_client.scoring.ids import below_common_folder
from vim_embed_client.scoring.neighbours import neighbours_of
from vim_embed_client.scoring.pairing import pair, usable_rows

if TYPE_CHECKING:
    from vim_embed_client.figures.sheet import Sheet


def _images(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is not None and not value.startswith("hf:") and not Path(value).exists():
        raise not_there(value)
    return value


@click.command(cls=WritingCommand)
@click.argument("first", type=click.Path())
@click.argument("second", type=click.Path(), required=False)
@click.option(
    "-o", "--output", required=True, metavar="FILE", callback=sheet_path,
    type=OutputPath(dir_okay=False), help="Sheet to draw: .png, .pdf or .svg.",
)  # fmt: skip
@click.option(
    "--images", metavar="FOLDER|FILE|hf:SET", callback=_images,
    help="Where the images are: a folder, or a source that was embedded.  [default: where the ids "
    "say]",
)  # fmt: skip
@click.option(
    "--second-images", metavar="FOLDER|FILE|hf:SET", callback=_images,
    help="Where the images of the second file's neighbours are, likewise.  [default: that of "
    "--images, else where its own ids say]",
)  # fmt: skip
@click.option(
    "-k", "--k", default=8, show_default=True, type=click.IntRange(1, 30), help="Neighbours."
)
@click.option(
    "--query", "asked", multiple=True, metavar="ID|ROW",
    help="Source to show, by its id or its row (counted from 0); may be repeated.",
)  # fmt: skip
@click.option(
    "--queries", "count", default=6, show_default=True, type=click.IntRange(1, 50),
    help="Sources to draw at random where none is asked for.",
)  # fmt: skip
@click.option("--seed", default=0, show_default=True, help="Of the random sources.")
@pairing_options
@json_option
def neighbours(
    first: str,
    second: str | None,
    output: Path,
    images: str | None,
    second_images: str | None,
    k: int,
    asked: tuple[str, ...],
    count: int,
    seed: int,
    pairing: dict[str, Any],
    drop_invalid: bool,
    as_json: bool,
) -> None:
    """Draw sources beside those that a model finds alike.

    FIRST, and SECOND if it is given, are files that `vim-embed score` takes. With two, the
    neighbours in both stand one above the other, and those that agree are marked. Images are
    found through the ids that `vim-embed embed` wrote, in --images if given, and are shown as the
    model saw them: read with the options that the file records.
    """
    if second_images is not None and second is None:
        raise click.UsageError("--second-images needs a second file of embeddings")
    if second is None and (given := [name for name in ("match", "pairs") if pairing[name]]):
        raise click.UsageError(f"--{given[0]} needs a second file of embeddings")
    files = _files(first, second, pairing, drop=drop_invalid)
    n = len(files[0])
    if k >= n:
        raise InputError(f"-k {k} needs more than {k} sources, and there are {n}: lower -k")
    queries = [_row(files[0], name) for name in asked] or _drawn(n, count, seed)
    sheet = _sheet(files, [images, second_images], queries, k)
    _draw(sheet, output)
    if as_json:
        print_json(_report(sheet, output))
    else:
        _print(sheet, output)


def _files(
    first: str, second: str | None, pairing: dict[str, Any], *, drop: bool
) -> tuple[EmbeddingFile, ...]:
    one = read_embeddings(first, by_row=pairing["by_row"])
    if second is None:
        return usable_rows(one, drop=drop)
    two = read_embeddings(second, by_row=pairing["by_row"])
    one, two, _ = pair(one, two, **pairing)
    return usable_rows(one, two, drop=drop)


def _row(file: EmbeddingFile, asked: str) -> int:
    """The row of an id, of the end of just one id, or of a number counted in the file."""
    ids = file.ids or []
    ending = [row for row, name in enumerate(ids) if name == asked] or [
        row for row, name in enumerate(ids) if name.endswith(f"/{asked}")
    ]
    if len(ending) == 1:
        return ending[0]
    if ending:
        raise InputError(f"--query {asked} fits {len(ending)} ids of {file.label}: give one whole")
    if asked.isdecimal() and (file.numbers == int(asked)).any():
        return int(np.argmax(file.numbers == int(asked)))
    near = difflib.get_close_matches(asked, below_common_folder(ids), n=2)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise InputError(f"--query {asked} is neither an id nor a row of {file.label}{hint}")


def _drawn(n: int, count: int, seed: int) -> list[int]:
    chosen = np.random.default_rng(seed).choice(n, size=min(count, n), replace=False)
    return [int(row) for row in np.sort(chosen)]


def _sheet(
    files: Sequence[EmbeddingFile], sources: Sequence[str | None], queries: list[int], k: int
) -> Sheet:
    from vim_embed_client.figures.images import Images
    from vim_embed_client.figures.sheet import Sheet

    views = [Images(files[0], sources[0])]
    if len(files) == 2:
        own = sources[1] is not None or (sources[0] is None and not _seen_alike(*files))
        views.append(Images(files[1], sources[1], option="--second-images") if own else views[0])
    ids = files[0].ids
    numbered = [f"row {number}" for number in files[0].numbers]
    return Sheet(
        files=files,
        images=views,
        queries=queries,
        neighbours=[neighbours_of(file.embeddings, queries, k) for file in files],
        labels=numbered if ids is None else _labels(ids),
    )


def _seen_alike(one: EmbeddingFile, two: EmbeddingFile) -> bool:
    """Whether both are of the same images, as two models of one survey are."""
    alike = one.options == two.options or one.options is None or two.options is None
    return alike and one.ids is not None and one.ids == two.ids


def _labels(ids: Sequence[str]) -> list[str]:
    """Ids without the folder that all have in common; rows of one file keep its name."""
    short = zip(ids, below_common_folder(ids), strict=True)
    return [Path(name).name if label.startswith(".#") else label for name, label in short]


def _draw(sheet: Sheet, output: Path) -> None:
    from vim_embed_client.figures.sheet import sheet_figure
    from vim_embed_client.figures.style import save

    save(sheet_figure(sheet), output)


def _report(sheet: Sheet, output: Path) -> dict[str, Any]:
    return {
        "output": str(output),
        "k": sheet.k,
        "n": len(sheet.files[0]),
        "random_weights": any(file.random_weights for file in sheet.files),
        "files": [
            {"file": file.label, "provenance": dict(file.provenance)} for file in sheet.files
        ],
        "queries": [_query(sheet, query) for query in range(len(sheet.queries))],
    }


def _query(sheet: Sheet, query: int) -> dict[str, Any]:
    file = sheet.files[0]
    row = sheet.queries[query]
    return {
        "id": file.name(row),
        "row": int(file.numbers[row]),
        "neighbours": [
            [
                {
                    "id": file.name(neighbour),
                    "row": int(file.numbers[neighbour]),
                    "distance": float(found.distances[query, place]),
                    "in_both": bool(sheet.agreeing(which, query)[place]),
                }
                for place, neighbour in enumerate(found.indices[query])
            ]
            for which, found in enumerate(sheet.neighbours)
        ],
    }


def _print(sheet: Sheet, output: Path) -> None:
    console = stdout()
    if any(file.random_weights for file in sheet.files):
        console.print(RANDOM_WEIGHTS)
    for query, row in enumerate(sheet.queries):
        nearest = ", ".join(sheet.labels[i] for i in sheet.neighbours[0].indices[query][:3])
        agree = int(sheet.agreeing(0, query).sum())
        both = f" ({agree} of {sheet.k} in both)" if len(sheet.files) > 1 else ""
        say(console, f"{escape(sheet.labels[row])}: {escape(nearest)} …{both}")
    say(console, f"Written: {escape(str(output))}")
