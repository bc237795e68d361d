"""Query parameters that say how a FITS file becomes pixels: the client's options, by their names.

They have no effect on other bodies, where they are an error.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import lru_cache
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from vim_embed.errors import InvalidInput
from vim_embed_pixels.errors import UnusableOptions, in_a_query

_KNOWN = 64


class FitsQuery(BaseModel):
    """See docs/bulk.md: what each does is the same there."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    survey: str | None = Field(None, description="FITS: hsc, jwst or legacysurvey, or one @head")
    bands: str | None = Field(None, description="FITS: places of red, green and blue, as 3,1,0")
    hdu: str | None = Field(
        None, description="FITS: name or number, three of them, or all: a row each"
    )
    stretch: str | None = Field(None, description="FITS: linear, sqrt, log, asinh, lupton, …")
    softening: float | None = Field(None, description="FITS: of the stretches asinh and lupton")
    percentiles: str | None = Field(None, description="FITS: fluxes that are 0 and 1, as 1,99")
    limits: str | None = Field(None, description="FITS: fluxes that are 0 and 1, as -0.1:2")
    zero_point: float | None = Field(
        None, description="FITS: AB magnitude of a flux of 1, for limits with units"
    )
    per_band: bool | None = Field(None, description="FITS: percentiles of each band by itself")
    blank: str | None = Field(None, description="FITS: in place of NaN: a number, or sky")
    crop: int | None = Field(None, ge=1, description="FITS: side of the middle square")
    flip: bool | None = Field(None, description="FITS: upside down")
    stack: bool | None = Field(
        None, description="FITS: the first axis of an HDU counts images, a row each"
    )

    def given(self) -> list[str]:
        """The parameters that were given."""
        return [name for name in FitsQuery.model_fields if getattr(self, name) is not None]

    def check_used(self, any_fits: bool) -> None:
        """Raise InvalidInput where one was given and there is no FITS file."""
        if not any_fits and (given := self.given()):
            raise InvalidInput(
                f"{', '.join(given)} would have no effect: these parameters are of FITS files"
            )

    @property
    def several(self) -> bool:
        """Whether a file may be several rows. Raises InvalidInput."""
        return _several(self._alone())

    def told(self) -> dict[str, Any]:
        """FitsOptions as a mapping. Raises InvalidInput."""
        return _told(self._alone())

    def _alone(self) -> FitsQuery:
        """Without the parameters of the route that it is read for."""
        return FitsQuery(**{name: getattr(self, name) for name in FitsQuery.model_fields})


@lru_cache(_KNOWN)
def _told(query: FitsQuery) -> dict[str, Any]:
    # numpy's and scipy's are there already; of astropy, only decoder processes have a use.
    from vim_embed_pixels import texts
    from vim_embed_pixels.fits import FitsOptions
    from vim_embed_pixels.surveys import survey_stretch

    given = {name: getattr(query, name) for name in query.given()}
    try:
        read = {
            name: texts.PARSERS[name](value) if name in texts.PARSERS else value
            for name, value in given.items()
        }
        hdus, crop, flip = read.pop("hdu", None), read.pop("crop", None), read.pop("flip", False)
        stack = read.pop("stack", False)
        kind = read.pop("stretch", None)
        stretch = survey_stretch(read.pop("survey", None), kind=kind, **read).for_channels(3)
    except UnusableOptions as error:
        raise InvalidInput(in_a_query(error.message)) from None
    return asdict(FitsOptions(stretch=stretch, hdus=hdus, crop=crop, flip=flip, stack=stack))


@lru_cache(_KNOWN)
def _several(query: FitsQuery) -> bool:
    from vim_embed_pixels.fits import FitsOptions

    return FitsOptions.of(_told(query)).several


NO_FITS = FitsQuery()
