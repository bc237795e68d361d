"""Options that cut galaxies out of mosaics at the positions of a catalogue."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import click

from vim_embed_client.bulk.row_columns import check_names
from vim_embed_client.bulk.sources.options import Flags, MaskOptions, SkyOptions
from vim_embed_client.cli.angles import angle
from vim_embed_client.errors import ConfigurationError

_NAMES = (
    "catalogue", "size", "scale", "north_up", "max_blank", "position", "mask", "weight",
    "mask_flags",
)  # fmt: skip
_OF_ANY = ("max_blank", "mask", "weight", "mask_flags")
_SHARE = click.FloatRange(0, 1)

Callback = Callable[[click.Context, click.Parameter, Any], Any]


def column_names(count: int | None = None) -> Callback:
    """A callback that splits names of columns at their commas."""

    def callback(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
        if value is None:
            return None
        names = tuple(name.strip() for name in value.split(","))
        if not all(names) or (count and len(names) != count):
            raise click.BadParameter(f"{value!r} is not of the form {param.metavar}")
        return names

    return callback


def _kept(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...]:
    names = column_names()(ctx, param, value) or ()
    try:
        check_names(names)
    except ConfigurationError as error:
        raise click.BadParameter(error.message) from None
    return tuple(names)


def _flags(ctx: click.Context, param: click.Parameter, value: str | None) -> Flags | None:
    if value is None:
        return None
    found = tuple(_flag(text.strip()) for text in value.split(","))
    if any(flag is None for flag in found):
        raise click.BadParameter(f"{value!r} is not of the form 1,4,8 or BAD,SAT")
    return tuple(flag for flag in found if flag is not None)


def _flag(text: str) -> int | str | None:
    """The value of a bit, the name of a plane, or None for neither."""
    if text.isidentifier():
        return text
    try:
        value = int(text, 0)
    except ValueError:
        return None
    return value if value > 0 else None


SKY = (
    click.option(
        "--catalogue", "--catalog", "catalogue", metavar="FILE", multiple=True,
        help="Cut out the positions of this table (FITS, VOTable, ECSV, CSV, Parquet, text of "
        "SExtractor, CDS, IPAC and others, packed or not, or a folder of HATS); PATHS are the FITS "
        "files of a mosaic then. May be repeated.",
    ),
    click.option(
        "--size", metavar="ANGLE", callback=angle,
        help="Side of a cut-out on the sky, such as 6arcsec or 0.1arcmin.",
    ),
    click.option(
        "--scale", metavar="ANGLE", callback=angle,
        help="Of a cut-out's pixel, such as 0.05arcsec.  [default: that of the mosaic]",
    ),
    click.option(
        "--north-up", is_flag=True,
        help="North up and east left.  [default: as the mosaic lies]",
    ),
    click.option(
        "--max-blank", type=_SHARE, metavar="SHARE",
        help="Pass over cut-outs of which more than this share of the pixels is masked, NaN or "
        "off the edge; the rest is filled as --blank says, else with the sky.  [default: 0.1; "
        "without --catalogue, --mask or --weight any share]",
    ),
    click.option(
        "--position", metavar="RA,DEC", callback=column_names(2),
        help="The catalogue's columns of right ascension and declination, with their units if "
        "the file does not tell them, as in 'ra[hourangle],dec[deg]'.  [default: by their usual "
        "names]",
    ),
    click.option(
        "--mask", metavar="HDU|FILES",
        help="Data quality: an HDU of each image's file (DQ), or FITS files with the same pixels; "
        "without --catalogue, a file for each image, whose name stands for *, as in "
        "'*_mask.fits'. What is not 0 is masked.",
    ),
    click.option(
        "--mask-flags", metavar="FLAG,…", callback=_flags,
        help="Of the mask, values of the bits that count, such as 1,4,8, or names of its planes, "
        "such as BAD,SAT.  [default: all]",
    ),
    click.option(
        "--weight", metavar="HDU|FILES",
        help="As --mask; what is not above 0 is masked.",
    ),
)  # fmt: skip
KEEP = click.option(
    "--keep", metavar="NAME,…", callback=_kept,
    help="Columns of the catalogue, table or data set that are written beside the embeddings.",
)  # fmt: skip


class WhatIsCut(NamedTuple):
    """Cut-outs, if there is a catalogue; masks of other images; and the sources."""

    sky: SkyOptions | None
    masks: MaskOptions | None
    sources: tuple[str, ...]


def sky_options(given: dict[str, Any]) -> WhatIsCut:
    """Take the options out of `given`. Raises UsageError where one needs another."""
    told = {name: given.pop(name) for name in _NAMES}
    catalogues = told.pop("catalogue")
    paths = given["paths"]
    set_ = {name: value for name, value in told.items() if value is not None and value is not False}
    if catalogues:
        if "size" not in set_:
            raise click.UsageError(
                "--catalogue needs the size of the cut-outs, as in --size 6arcsec"
            )
        sky = SkyOptions(images=tuple(paths), catalogues=tuple(catalogues), **set_)
        return WhatIsCut(sky, None, catalogues)
    if of_mosaics := [name for name in set_ if name not in _OF_ANY]:
        flag = "--" + of_mosaics[0].replace("_", "-")
        raise click.UsageError(f"{flag} is for cut-outs: give the positions with --catalogue")
    if "mask_flags" in set_ and not {"mask", "weight"} & set_.keys():
        raise click.UsageError("--mask-flags needs --mask, or a --catalogue")
    return WhatIsCut(None, MaskOptions(**set_) if set_ else None, paths)
