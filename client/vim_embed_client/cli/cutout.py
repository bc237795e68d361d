"""`vim-embed cutout`: galaxies out of mosaics, kept as files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from vim_embed_client.bulk.cutout_files import check_cutouts, write_cutouts
from vim_embed_client.bulk.distinct import DistinctIds
from vim_embed_client.bulk.outputs import skipped_list
from vim_embed_client.bulk.reasons import LeftOut
from vim_embed_client.bulk.row_columns import column_kinds
from vim_embed_client.bulk.sources.catalogue import CatalogueReader, CutRow
from vim_embed_client.bulk.sources.options import ReadOptions
from vim_embed_client.bulk.sources.reader import Skipped
from vim_embed_client.bulk.sources.registry import without_effect
from vim_embed_client.cli.common import SOME_LEFT_OUT, json_option, print_json, say, stderr
from vim_embed_client.cli.option_groups import GroupedCommand, grouped
from vim_embed_client.cli.reading_options import HDU, ID_COLUMN, JOIN_BANDS
from vim_embed_client.cli.sky_options import KEEP, SKY, sky_options
from vim_embed_client.cli.written_files import OutputPath
from vim_embed_client.errors import InputError


@click.command(cls=GroupedCommand)
@click.argument("paths", nargs=-1, required=True)
@click.option(
    "-o", "--output", required=True, type=OutputPath(), metavar="FOLDER|FILE",
    help="A folder for FITS files, or a .parquet or .h5 file.",
)  # fmt: skip
@click.option(
    "--on-error", default="fail", show_default=True, type=click.Choice(["fail", "skip"]),
    help="What to do about a position that cannot be cut out.",
)  # fmt: skip
@grouped("Cut-outs of a mosaic", *SKY)
@grouped("What is read", ID_COLUMN, KEEP, HDU, JOIN_BANDS)
@json_option
def cutout(output: Path, on_error: str, as_json: bool, **given: Any) -> int:
    """Cut galaxies out of mosaics at a catalogue's positions.

    PATHS and the options are those of `vim-embed embed`, which reads what is written: FITS files
    with their WCS, or fluxes as the column `image` of a Parquet file or the data set `images` of
    an HDF5 file. All planes of a cube are kept. Blank pixels are NaN.
    """
    sky, _, catalogues = sky_options(given)
    if sky is None:
        raise click.UsageError("give the positions with --catalogue")
    rest = {name: given[name] for name in ("id_column", "keep", "hdus", "join_bands")}
    options = ReadOptions(sky=sky, **rest)
    if idle := without_effect(catalogues, options):
        raise click.UsageError(f"{', '.join(idle)} would have no effect here: leave it out")
    check_cutouts(output)
    found = LeftOut()
    readers = [CatalogueReader(source, options, whole=True) for source in catalogues]
    kinds = column_kinds(lambda: [(reader.count(), reader.kept()) for reader in readers])
    rows = _rows(readers, fail=on_error == "fail")
    before = output.is_file() and output.stat().st_size > 0
    written = write_cutouts(output, rows, found, kinds)
    console = stderr()
    groups = [*found.skipped, *found.passed_over]
    for group in groups:
        say(console, f"[yellow]left out[/] {escape(group.ids)}: {escape(group.reason)}")
    listed = skipped_list(output) if groups else None
    if listed:
        say(console, f"All ids and reasons: {escape(str(listed))}")
    replaced = ", in place of an earlier run's" if before else ""
    say(console, f"{written:,} cut-outs -> {escape(str(output))}{replaced}")
    if as_json:
        print_json({
            "output": str(output),
            "cutouts": written,
            "left_out": listed and str(listed),
            "skipped_reasons": found.skipped.as_json(),
            "passed_over_reasons": found.passed_over.as_json(),
        })  # fmt: skip
    return SOME_LEFT_OUT if found.skipped.count else 0


def _rows(readers: Sequence[CatalogueReader], *, fail: bool) -> Iterator[CutRow | Skipped]:
    ids = DistinctIds()
    for reader in readers:
        for found in reader.cutouts(0):
            row = (isinstance(found, CutRow) and ids.repeated(found.id)) or found
            if isinstance(row, Skipped) and row.fault and fail:
                raise InputError(
                    f"{row.id}: {row.reason} (--on-error skip goes on without such rows)"
                )
            yield row
