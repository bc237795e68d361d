"""What a model would see of some rows: the pixels that `embed` sends, or that the service makes.

They are made by the code that makes them for `embed`, and that decodes images in the service.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from vim_embed_client.bulk.sender import encoded_bytes, sent_pixels
from vim_embed_client.bulk.sources.faults import NoSource, named
from vim_embed_client.bulk.sources.options import ReadOptions
from vim_embed_client.bulk.sources.reader import Item, Skipped
from vim_embed_client.bulk.sources.registry import open_reader
from vim_embed_client.errors import InputError
from vim_embed_client.formats import Array
from vim_embed_client.results import PreprocessingEntry
from vim_embed_pixels.clipping import Clipped, clipped, remark
from vim_embed_pixels.images import Fit, decoded, fitted

# Rows in a row that were looked at and left out, after which the rest is not looked at.
PATIENCE = 64


@dataclass(frozen=True, kw_only=True)
class PreviewRow:
    """A row as (channels, H, W) uint8. remark: what is wrong with it, or nothing."""

    id: str
    pixels: Array
    clipped: Clipped
    remark: str


def preview_rows(
    sources: Sequence[str],
    options: ReadOptions,
    spec: PreprocessingEntry | None,
    count: int,
) -> Iterator[PreviewRow | Skipped]:
    """At most `count` rows, spread over the sources, and what was left out on the way.

    A source of which PATIENCE rows in a row had to be left out is not read any further; the last
    entry says so. spec: of the model that would see them; None: as they are after the stretch.
    """
    chosen = _spread(sources, count)
    for place, source in enumerate(chosen):
        quota = -(-count // (len(chosen) - place))
        shown = in_vain = 0
        reader = open_reader(source, options)
        try:
            for entry in reader.read(0):
                made = _made(entry, spec, options)
                yield made
                if isinstance(made, PreviewRow):
                    shown, in_vain = shown + 1, 0
                else:
                    in_vain += not made.unread
                if shown == quota:
                    break
                if in_vain == PATIENCE:
                    reason = f"the rest of it was not looked at, after {PATIENCE} in vain"
                    yield Skipped(id=reader.name, reason=reason, fault=False)
                    break
        except InputError as error:
            yield Skipped(id=reader.name, reason=error.message)
        count -= shown
        if count <= 0:
            return


def seen_pixels(item: Item, spec: PreprocessingEntry | None, options: ReadOptions) -> Array:
    """What the model sees of a row, as (channels, H, W) uint8. Raises InputError or NoSource.

    Of normalised floats, with a spec, the RGB that normalises to them; else their own range.
    """
    if item.like is None:
        with named("it cannot be read"):
            pixels: Array = decoded(encoded_bytes(item, options.channels))
        return pixels if spec is None else fitted(pixels, Fit.of(spec))
    pixels = sent_pixels(item, spec, resize=options.resize)
    return pixels if pixels.dtype == np.uint8 else _shown(pixels, spec)


def _made(
    entry: Item | Skipped, spec: PreprocessingEntry | None, options: ReadOptions
) -> PreviewRow | Skipped:
    if isinstance(entry, Skipped):
        return entry
    try:
        pixels = seen_pixels(entry, spec, options)
    except InputError as error:
        return Skipped(id=entry.id, reason=error.message)
    except NoSource as passed:
        return Skipped(id=entry.id, reason=str(passed), fault=False)
    told = entry.note or remark(pixels)
    return PreviewRow(id=entry.id, pixels=pixels, clipped=clipped(pixels), remark=told)


def _spread(sources: Sequence[str], count: int) -> list[str]:
    if len(sources) <= count:
        return list(sources)
    places = np.linspace(0, len(sources) - 1, count).round().astype(int)
    return [sources[place] for place in places]


def _shown(normalised: Array, spec: PreprocessingEntry | None) -> Array:
    values = normalised.astype(np.float64)
    if spec is not None:
        mean, std = (np.reshape(spec[name], (-1, 1, 1)) for name in ("mean", "std"))
        unit = values * std + mean
    else:
        unit = (values - values.min()) / (np.ptp(values) or 1)
    pixels: Array = np.rint(255 * unit.clip(0, 1)).astype(np.uint8)
    return pixels
