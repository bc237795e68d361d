"""Names that are not there: the nearest that is."""

from __future__ import annotations

import pytest

from vim_embed_pixels.spelling import absent


@pytest.mark.parametrize(
    ("wanted", "names", "told"),
    [
        (["RADEG"], ["id", "ra_deg", "dec_deg"],
         "no column 'RADEG' (did you mean 'ra_deg'?), but id, ra_deg, dec_deg"),
        (["q", "Dec"], ["id", "decl"],
         "no columns 'q' and 'Dec' (did you mean 'decl'?), but id, decl"),
        (["q"], [], "no column 'q', but none at all"),
    ],
)  # fmt: skip
def test_what_is_said(wanted: list[str], names: list[str], told: str) -> None:
    assert absent(wanted, names) == told


def test_of_many_names_the_first_are_told() -> None:
    told = absent(["flux_z"], [f"flux_{n}" for n in range(1000)])
    assert told.endswith("flux_29 and 970 more")
