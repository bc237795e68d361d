"""How platonic-universe shows each survey's fluxes: its release 0.1.0, and its head (`@head`)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vim_embed_pixels.errors import UnusableOptions, described
from vim_embed_pixels.stretch import Limits, Stretch

HEAD = "@head"

# Places of the bands in platonic-universe's cubes and its limits, here in the order R, G, B:
# hsc grizy and legacysurvey griz as z, r, g; jwst as f444w, f277w, f090w.
SURVEYS = {
    "hsc": Stretch(
        survey="hsc",
        bands=(3, 1, 0),
        limits=(
            (-0.057812731899321075, 1.508440258502958),
            (-0.026543444022536278, 0.7422214198112442),
            (-0.01787552610039711, 0.35058236330747405),
        ),
    ),
    "jwst": Stretch(
        survey="jwst",
        bands=(6, 4, 0),
        limits=(
            (-0.0294732004404068, 4.091785907745361),
            (-0.017583513632416725, 5.846490383148193),
            (-0.07078961282968521, 2.4474363327026367),
        ),
    ),
    "legacysurvey": Stretch(
        survey="legacysurvey",
        bands=(3, 1, 0),
        limits=(
            (-0.009074461692944168, 0.042978320308029616),
            (-0.003597061627078801, 0.021863272413611412),
            (-0.0023022370878607035, 0.009575212374329567),
        ),
    ),
}
NAMES = (*SURVEYS, *(f"{name}{HEAD}" for name in SURVEYS))

# The head's data/percentiles.json of 2026-07, which it needs at that place or at the one that
# PU_PERCENTILES_PATH names; in the order R, G, B.
_HEAD_BANDS = {"hsc": "zrg", "legacysurvey": "zrg", "jwst": ("f444w", "f277w", "f090w")}
_HEAD_LIMITS: dict[str, Limits] = {
    "hsc": (
        (-0.014415506273508072, 10.599109649658203),
        (-0.009395280852913857, 5.197093963623047),
        (-0.011502762325108051, 2.4385387897491455),
    ),
    "legacysurvey": (
        (-0.005664174444973469, 0.38434815406799316),
        (-0.0021618311293423176, 0.19957800209522247),
        (-0.0016248651081696153, 0.08414530754089355),
    ),
    "jwst": (
        (-0.057081807404756546, 4.091785907745361),
        (-0.03778649866580963, 5.846490383148193),
        (-0.1254158318042755, 2.4474363327026367),
    ),
}
# Its default resizing: half the side of the middle that is shown, and the side it is shown with.
_HEAD_ZOOM = {"hsc": (14, 96), "legacysurvey": (9, 96)}


def survey_stretch(survey: str | None, **given: Any) -> Stretch:
    """The stretch of a survey of platonic-universe, or the plain one, with what a user gives.

    Raises UnusableOptions for options that contradict each other, and where the head's file
    of percentiles is there but not as it should be.
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    if {"percentiles", "limits"} <= chosen.keys():
        raise UnusableOptions("--percentiles and --limits exclude each other: give one of them")
    start = survey_base(survey)
    if "percentiles" in chosen and chosen.get("kind") == "zscale":
        raise UnusableOptions("zscale finds limits by itself: leave --percentiles out")
    if "percentiles" in chosen or chosen.get("kind") == "zscale":
        start = replace(start, limits=None)
    made = replace(start, **chosen)
    if made.zero_point is not None and not made.has_units:
        raise UnusableOptions("--zero-point is for --limits with units, such as 0:22mag")
    if made.per_band and made.fixed and made.shape != "platonic":
        raise UnusableOptions(
            "--per-band has no effect beside limits: leave it out, or give --percentiles"
        )
    return made


def survey_base(survey: str | None) -> Stretch:
    """What a survey's name alone stands for."""
    if survey is None:
        return Stretch()
    name, head, _ = survey.partition(HEAD)
    if name not in SURVEYS:
        raise UnusableOptions(f"there is no survey {survey!r}: use one of {', '.join(NAMES)}")
    if not head:
        return SURVEYS[name]
    return replace(
        SURVEYS[name],
        survey=survey,
        limits=_head_limits(name),
        kind="platonic@head",
        zoom=_HEAD_ZOOM.get(name),
    )


def _head_limits(name: str) -> Limits:
    told = os.environ.get("PU_PERCENTILES_PATH")
    path = Path(told or "data/percentiles.json")
    if not told and not path.exists():
        return _HEAD_LIMITS[name]
    try:
        bands: Mapping[str, Any] = json.loads(path.read_bytes())[name]
        return tuple((bands[band]["p1"], bands[band]["p99"]) for band in _HEAD_BANDS[name])
    except Exception as error:
        raise UnusableOptions(
            f"{path} does not hold platonic-universe's percentiles of {name} ({described(error)})"
        ) from None


def bands_chosen(stretch: Stretch) -> Stretch:
    """The same for three bands that were named as red, green and blue already."""
    if stretch.survey and stretch.bands == survey_base(stretch.survey).bands:
        return replace(stretch, bands=None)
    return stretch
