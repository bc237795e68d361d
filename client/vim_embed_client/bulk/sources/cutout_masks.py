"""Masks and weights beside FITS images that are cut-outs already."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vim_embed_client.bulk.sources.content import Content
from vim_embed_client.bulk.sources.faults import named
from vim_embed_client.bulk.sources.options import Flags, MaskOptions
from vim_embed_client.errors import InputError
from vim_embed_client.formats import Array
from vim_embed_client.packing import unpacked_name
from vim_embed_client.paths import not_there
from vim_embed_pixels import fits, fits_library
from vim_embed_pixels.stretch import Stretch
from vim_embed_pixels.tiles import check_codec

_ENDINGS = (".fits", ".fit", ".fts", ".fz")
_PLANE = "MP_"


@dataclass(frozen=True)
class CutoutMasks:
    """What is masked in the images of one FITS file. hdus, listed: its own."""

    options: MaskOptions
    path: str
    hdus: Sequence[Any]
    listed: Sequence[fits.Hdu]

    def blanked(self, one: fits.Hdu, flux: Array, stretch: Stretch, at: tuple[int, ...]) -> Array:
        """The fluxes as floats, NaN where they are masked.

        flux: what `fits.planes_of` read of the HDU with `stretch` and `at`. Raises InputError.
        """
        found: Array = np.array(flux, np.result_type(flux.dtype, np.float32))
        if self.options.mask is not None:
            with self._hdu(self.options.mask, one) as mask:
                bits = mask_bits(self.options.mask_flags, mask.hdu.header)
                flags = flagged(self._planes(mask, one, stretch, at), bits)
            found[np.broadcast_to(flags, found.shape)] = np.nan
        if self.options.weight is not None:
            with self._hdu(self.options.weight, one) as weight:
                weights = self._planes(weight, one, stretch, at)
            found[~np.broadcast_to(weights > 0, found.shape)] = np.nan
        return found

    def _planes(
        self, mask: fits.Hdu, one: fits.Hdu, stretch: Stretch, at: tuple[int, ...]
    ) -> Array:
        """Of a mask: those of the image's planes, or the one for all of them."""
        with named(f"its mask {mask} cannot be read"):
            check_codec(mask.hdu)
            if mask.shape == one.shape[-2:]:
                return np.asarray(mask.hdu.section[:, :])
            if mask.shape != one.shape:
                raise InputError(f"its mask {mask} has other pixels than its {one}")
            bands = stretch.by_number(fits.band_names(one)).bands
            bands = bands or fits.colours(one.hdu.header, one.shape)
            return fits.planes_of(mask, replace(stretch, bands=bands, limits=None), at)[0]

    @contextmanager
    def _hdu(self, given: str, one: fits.Hdu) -> Iterator[fits.Hdu]:
        path = mask_path(given, self.path)
        if path is None:
            with named(f"its mask {given} cannot be read"):
                found = beside(self.hdus, self.listed, given, one)
            yield found
            return
        if not os.path.exists(path):
            if path == given:  # for every image
                raise not_there(path)
            raise InputError(f"its mask {path} is not there")
        library, content = fits_library.library(), Content(path, path=path)
        with content.open() as file, library.open(file, memmap=False) as opened:
            drawable = [each for each in fits.image_hdus(opened) if each.drawable]
            if len(drawable) != 1:
                raise InputError(f"its mask {path} has {len(drawable)} images, where one should be")
            yield drawable[0]


def beside(hdus: Sequence[Any], listed: Sequence[fits.Hdu], name: str, one: fits.Hdu) -> fits.Hdu:
    """The HDU of a name or number; of several of a name, that with the EXTVER of `one`."""
    several = sum(each.hdu.name.upper() == name.upper() for each in listed) > 1
    wanted = f"{name}:{one.hdu.ver}" if several else name
    return fits.hdu_named(hdus, listed, int(name) if name.isdigit() else wanted)


def mask_path(given: str, image: str) -> str | None:
    """The file that is meant beside an image, or None where `given` is the name of an HDU.

    `*` is the image's name without its ending; a relative path is looked for in the image's
    folder first.
    """
    if not unpacked_name(given).lower().endswith(_ENDINGS) and not any(m in given for m in "/*"):
        return None
    name = unpacked_name(os.path.basename(image))
    while name.lower().endswith(_ENDINGS):
        name = os.path.splitext(name)[0]
    path = given.replace("*", name)
    near = os.path.join(os.path.dirname(image), path)
    return near if os.path.exists(near) else path


def mask_bits(flags: Flags | None, header: Any) -> int | None:
    """The bits of a mask that count, or None for all of them. Raises InputError.

    flags: their values, or names of planes, which the masks of HSC and LSST have (`MP_BAD = 0`).
    header: of the mask. In such a mask the galaxies themselves are flagged as DETECTED.
    """
    planes = {key[3:]: int(header[key]) for key in header if key.startswith(_PLANE)}
    if flags is None:
        if "DETECTED" in planes:
            raise InputError(
                "its mask flags the galaxies too, as DETECTED: say which of its planes "
                f"({', '.join(planes)}) are flaws, as in --mask-flags BAD,SAT"
            )
        return None
    found = 0
    for flag in flags:
        if isinstance(flag, str) and flag.upper() not in planes:
            raise InputError(f"its mask has no plane {flag}, but {', '.join(planes) or 'none'}")
        found |= 1 << planes[flag.upper()] if isinstance(flag, str) else flag
    return found


def flagged(flags: Array, wanted: int | None) -> Array:
    """Which pixels are masked: those that are not 0, or have one of the bits `wanted`."""
    if wanted is None:
        return np.asarray(flags != 0)  # NaN is unequal to 0 too
    return np.asarray((np.nan_to_num(flags).astype(np.int64) & wanted) != 0)
