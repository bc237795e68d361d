"""Options of `vim-embed embed` that say how rows are taken out of sources."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from vim_embed_client.bulk.reasons import LeftOut
from vim_embed_client.bulk.sources.options import ReadOptions
from vim_embed_client.bulk.sources.registry import find_sources, without_effect
from vim_embed_client.cli.option_groups import grouped
from vim_embed_client.cli.sky_options import KEEP, SKY, sky_options
from vim_embed_client.errors import ConfigurationError, InputError
from vim_embed_pixels import texts
from vim_embed_pixels.errors import UnusableOptions
from vim_embed_pixels.stretch import STRETCHES
from vim_embed_pixels.surveys import NAMES, survey_stretch

_SEE = "leave it out, or see what it is for in `vim-embed embed --help`"

F = TypeVar("F", bound=Callable[..., Any])

_STRETCH = (
    "bands",
    "percentiles",
    "limits",
    "zero_point",
    "kind",
    "softening",
    "per_band",
    "blank",
)
_REST = (
    "column", "id_column", "config", "shape", "resize", "stack", "crop", "flip", "join_bands",
    "hdus", "keep", "id_header",
)  # fmt: skip


def numbers(
    kind: Callable[[str], Any], form: str, *, count: int | None = None
) -> Callable[[click.Context, click.Parameter, str | None], tuple[Any, ...] | None]:
    """A callback that splits a value at its commas. form: an example, for the message."""
    return _parsed(lambda text: texts.several(text, kind, form, count))


def _parsed(
    parse: Callable[[str], Any],
) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    def callback(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
        try:
            return None if value is None else parse(value)
        except UnusableOptions as error:
            raise click.BadParameter(error.message) from None

    return callback


def _word(text: str) -> str:
    if not text.strip().isalnum():
        raise ValueError
    return text.strip()


ID_COLUMN = click.option(
    "--id-column", metavar="NAME",
    help="Column of a table or data set whose values are the ids of rows.",
)  # fmt: skip
ID_HEADER = click.option(
    "--id-header", metavar="KEY",
    help="Of FITS images: the key of the header whose value is the id, such as OBJECT.",
)  # fmt: skip
HDU = click.option(
    "--hdu", "hdus", metavar="NAME,…", callback=_parsed(texts.hdus),
    help="HDU of FITS files by number or name (SCI:2 with its EXTVER), three that are red, "
    "green, blue, or all: a row of each image.  [default: the first that is named SCI or "
    "IMAGE, else the first that is not named as mask, error or weight]",
)  # fmt: skip
JOIN_BANDS = click.option(
    "--join-bands", metavar="R,G,B", callback=numbers(_word, "z,r,g"),
    help="Files whose names differ in these words alone are the red, green and blue band of "
    "one image, such as g.fits, r.fits, z.fits with z,r,g.",
)  # fmt: skip
_SOURCES = (
    click.option(
        "--column", metavar="NAME",
        help="What to embed: a column of a table or data set, an array of an .npz, or an "
        "extension (`jpg`, `left.png`) in webdataset shards.",
    ),
    ID_COLUMN,
    ID_HEADER,
    click.option(
        "--config", metavar="NAME", help="Of a data set that has several configurations."
    ),
    click.option(
        "--shape", metavar="3,H,W", callback=numbers(int, "3,224,224", count=3),
        help="Of images that a table holds as flat lists.",
    ),
    click.option(
        "--resize", is_flag=True, help="Bring uint8 arrays to the model's size, as images are."
    ),
    click.option(
        "--stack", is_flag=True,
        help="The first axis of an (N, H, W) array or FITS image counts galaxies, not bands.",
    ),
    click.option(
        "--crop", metavar="PIXELS", type=click.IntRange(1),
        help="Take the middle square of so many pixels of every image, before it is stretched.",
    ),
    click.option(
        "--flip", is_flag=True,
        help="Turn arrays, fluxes and FITS images upside down. FITS rows go upwards already.",
    ),
    HDU,
    JOIN_BANDS,
    KEEP,
)  # fmt: skip
_FLUXES = (
    click.option(
        "--survey", type=click.Choice(NAMES),
        help="Bands, limits and stretch with which platonic-universe 0.1.0 shows this survey's "
        "fluxes; @head: its development head, with its zoom.",
    ),
    click.option(
        "--bands", metavar="R,G,B", callback=_parsed(texts.bands),
        help="Places, from 0, of the bands of a cube that are shown as red, green and blue; one "
        "is shown as grey.",
    ),
    click.option(
        "--percentiles", metavar="LOW,HIGH", callback=_parsed(texts.percentiles),
        help="Of each image's fluxes: what the stretch takes as 0 and 1.  [default: 1,99]",
    ),
    click.option(
        "--limits", metavar="LOW:HIGH,…|zscale", callback=_parsed(texts.limits),
        help="Fluxes that are 0 and 1, in place of percentiles: one pair, or one for each band, in "
        "the unit of the file, or with one (0:500nJy, 0:22mag/arcsec2); zscale finds them in each "
        "image, as IRAF and DS9 do.",
    ),
    click.option(
        "--zero-point", metavar="MAG", type=float,
        help="AB magnitude of a flux of 1, for limits with units.  [default: as the file's BUNIT]",
    ),
    click.option(
        "--stretch", "kind", type=click.Choice(STRETCHES),
        help="How fluxes become pixels: a stretch of astropy (linear, sqrt, log, asinh, lupton), "
        "linear with zscale's limits, or that of platonic-universe 0.1.0 (platonic) or its head.  "
        "[default: linear with limits, else platonic]",
    ),
    click.option(
        "--softening", metavar="NUMBER", type=float,
        help="Of --stretch asinh: where it turns from linear to logarithmic, in parts of the range "
        "[default: 0.1]; of lupton: Q [default: 8].",
    ),
    click.option(
        "--per-band", is_flag=True, default=None,
        help="Percentiles of each band, and not of the three together.",
    ),
    click.option(
        "--blank", metavar="VALUE|sky", callback=_parsed(texts.blank),
        help="In place of fluxes that are not finite: a number, or the median of the band.",
    ),
)  # fmt: skip
_GROUPS = {
    "What is read": _SOURCES,
    "Cut-outs of a mosaic, and masks": SKY,
    "How fluxes become pixels": _FLUXES,
}


def checked_sources(
    paths: Sequence[str], output: Path, options: ReadOptions, found: LeftOut
) -> list[str]:
    """The sources at the paths; what is passed over goes to `found`.

    Raises UsageError for a path that leads to nothing, and for options that have no effect on any.
    """
    try:
        sources = find_sources(paths, options=options, leave_out=[output], pass_over=found.add)
    except InputError as error:
        raise ConfigurationError(error.message) from None
    if idle := without_effect(sources, options):
        raise click.UsageError(
            f"{', '.join(idle)} would have no effect on any of these sources: {_SEE}"
        )
    return sources


def reading_options(command: F) -> F:
    """Add the options; the command gets them as one `read_options`.

    With a catalogue, its `paths` are catalogues, and those that were given the images of it.
    """

    @wraps(command)
    def read(**given: Any) -> Any:
        survey = given.pop("survey")
        chosen = {name: given.pop(name) for name in _STRETCH}
        rest = {name: given.pop(name) for name in _REST}
        try:
            stretch = survey_stretch(survey, **chosen)
        except UnusableOptions as error:
            raise click.UsageError(error.message) from None
        sky, masks, given["paths"] = sky_options(given)
        options = ReadOptions(stretch=stretch, sky=sky, masks=masks, **rest)
        return command(read_options=options, **given)

    for title, options in reversed(_GROUPS.items()):
        grouped(title, *options)(read)
    return read  # type: ignore[return-value]
