"""How the rows of an embedding file were read, as the file itself tells."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from vim_embed_client.bulk.sources.options import ReadOptions

READ_OPTIONS = frozenset(one.name for one in fields(ReadOptions))


def recorded_options(told: Any) -> ReadOptions | None:
    """The options of `vim-embed embed`; None where the file does not say, or not intelligibly.

    told: what stands under "options" in the file's metadata, also as JSON.
    """
    try:
        return ReadOptions.of(json.loads(told) if isinstance(told, (str, bytes)) else told)
    except Exception:  # files of other tools, or of another version
        return None


def read_otherwise(
    first: ReadOptions, second: ReadOptions, names: tuple[str, str] = ("the first", "the second")
) -> list[str]:
    """Which options showed the model other pixels, such as `--flip given for A, not given for B`.

    Not those that every survey has of its own: bands, the numbers of limits, zero points, masks.
    names: what to call the two.
    """
    return [
        f"{name} {_text(one)} for {names[0]}, {_text(other)} for {names[1]}"
        for (name, one), (_, other) in zip(_seen(first), _seen(second), strict=True)
        if one != other
    ]


def option_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`--keep was radius,colour, now radius` for each option that differs between two runs.

    before, now: options as a file records them, also after a way through JSON.
    """
    was, is_ = (
        ReadOptions.of(one).by_flag()
        | {f"--{name}": value for name, value in one.items() if name not in READ_OPTIONS}
        for one in (before, now)
    )
    pairs = ((flag, was.get(flag), is_.get(flag)) for flag in dict.fromkeys([*was, *is_]))
    return [
        f"{flag} was {_text(one)}, now {_text(other)}"
        for flag, one, other in pairs
        if _tuples(one) != _tuples(other)
    ]


def _tuples(value: Any) -> Any:
    """Lists as tuples, and what says nothing as None."""
    found = tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value
    return None if found is False or found in ((), "") else found


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
    if value is None or value is False or value == ():
        return "not given"
    if value is True:
        return "given"
    if isinstance(value, (list, tuple)):
        return ",".join(map(_part, value))
    return _part(value)


def _part(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ":".join(map(_part, value))
    return f"{value:g}" if isinstance(value, float) else f"{value}"
