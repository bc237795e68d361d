"""How the rows of an embedding file were read, as the file itself tells."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from vim_embed_client.bulk.sources.options import ReadOptions


def recorded_options(told: Any) -> ReadOptions | None:
    """The options of `vim-embed embed`; None where the file does not say, or not intelligibly.

    told: what stands under "options" in the file's metadata, also as JSON.
    """
    try:
        return ReadOptions.of(json.loads(told) if isinstance(told, (str, bytes)) else told)
    except Exception:  # files of other tools, or of another version
        return None


def read_otherwise(first: ReadOptions, second: ReadOptions) -> list[str]:
    """Which options showed the model other pixels, such as `--size 2.4arcsec and 4arcsec`.

    Not those that every survey has of its own: bands, the numbers of limits, zero points, masks.
    """
    return [
        f"{name} {_text(one)} and {_text(other)}"
        for (name, one), (_, other) in zip(_seen(first), _seen(second), strict=True)
        if one != other
    ]


def _seen(options: ReadOptions) -> Iterator[tuple[str, Any]]:
    stretch, sky = options.stretch, options.sky
    yield "--size", sky and f"{sky.size:g}arcsec"
    yield "--scale", sky and sky.scale and f"{sky.scale:g}arcsec"
    yield "--north-up", sky is not None and sky.north_up
    yield "--crop", options.crop
    yield "--flip", options.flip
    yield "--resize", options.resize
    if stretch.survey is None:
        limits = stretch.limits
        yield "--limits", limits if limits is None or limits == "zscale" else "given"
        yield "--percentiles", stretch.percentiles if limits is None else None
    else:  # which has limits of its own
        yield "--limits", "given"
        yield "--percentiles", None
    yield "--stretch", stretch.kind
    yield "--softening", stretch.softening
    yield "--per-band", stretch.per_band
    yield "--blank", stretch.blank


def _text(value: Any) -> str:
    if value is None or value is False:
        return "left out"
    if value is True:
        return "given"
    return ",".join(f"{one:g}" for one in value) if isinstance(value, tuple) else f"{value}"
