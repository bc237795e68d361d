"""Which positions of two lists are of one source: mutual nearest neighbours within a radius."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from vim_embed_client.formats import Array
from vim_embed_client.sky.angles import astropy


class Matches(NamedTuple):
    """first, second: (m,) places of the pairs, in the order of the first list.

    separations: (m,) arcseconds. ambiguous: pairs of which one has a second neighbour within the
    radius, so that the radius alone does not decide.
    """

    first: Array
    second: Array
    separations: Array
    ambiguous: int


def mutual_matches(
    first: tuple[Array, Array], second: tuple[Array, Array], radius: float
) -> Matches:
    """Pairs of which each is the other's nearest, at most `radius` arcseconds apart.

    first, second: right ascension and declination in degrees; NaN matches nothing.
    """
    coordinates = astropy("coordinates")
    there = [np.flatnonzero(np.isfinite(ra) & np.isfinite(dec)) for ra, dec in (first, second)]
    if not all(map(len, there)):
        none = np.empty(0, np.int64)
        return Matches(none, none, np.empty(0), 0)
    one, two = (
        coordinates.SkyCoord(ra[rows], dec[rows], unit="deg")
        for (ra, dec), rows in zip((first, second), there, strict=True)
    )
    nearest, apart, _ = one.match_to_catalog_sky(two)
    back, _, _ = two.match_to_catalog_sky(one)
    places = np.arange(len(there[0]))
    paired = (back[nearest] == places) & (apart.arcsec <= radius)
    mine, theirs = places[paired], nearest[paired]
    crowded = np.zeros(len(mine), bool)
    for here, other, rows in ((one, two, mine), (two, one, theirs)):
        if len(other) > 1 and len(rows):
            _, following, _ = here[rows].match_to_catalog_sky(other, nthneighbor=2)
            crowded |= following.arcsec <= radius
    return Matches(there[0][mine], there[1][theirs], apart.arcsec[paired], int(crowded.sum()))
