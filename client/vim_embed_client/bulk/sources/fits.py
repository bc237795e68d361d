"""Rows of FITS files: images, cubes of bands, and stacks of cubes."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vim_embed_client.bulk.sources.arrow_values import flux_item
from vim_embed_client.bulk.sources.flux import Stretch, select_places
from vim_embed_client.bulk.sources.reader import Entry, FileReader
from vim_embed_client.errors import ConfigurationError, InputError
from vim_embed_client.formats import Array

HduName = int | str

_FAULTS = (OSError, EOFError, ValueError, TypeError, KeyError, IndexError, zlib.error)


class FitsReader(FileReader):
    """A FITS file: one row of an (H, W) image or a (bands, H, W) cube, N of an (N, bands, H, W).

    hdus: the HDU to read, by number or name, or several images that are a band each; None is the
    first that holds an image.
    """

    def __init__(self, path: str, hdus: Sequence[HduName] | None, stretch: Stretch) -> None:
        super().__init__(path)
        self._hdus, self._stretch = hdus, stretch

    def read(self, start: int) -> Iterator[Entry]:
        fits = _fits()
        try:
            # Sections are read as they are asked for; a map would count as this process's memory.
            with fits.open(self.name, memmap=False, lazy_load_hdus=True) as file:
                yield from self._rows(self._chosen(file), start)
        except InputError:
            raise
        except _FAULTS as error:
            raise InputError(f"cannot be read as FITS ({error})") from None

    def _chosen(self, file: Any) -> list[Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a file cut short, whose data then is an error
            if self._hdus is None:
                chosen = [hdu for hdu in file if _is_image(hdu)][:1]
            else:
                chosen = [file[name] for name in self._hdus]
        if not chosen:
            raise InputError("it holds no image")
        if self._hdus is None:
            return chosen
        for name, hdu in zip(self._hdus, chosen, strict=True):
            if not _is_image(hdu):
                raise InputError(f"its HDU {name} holds no image")
        return chosen

    def _rows(self, hdus: Sequence[Any], start: int) -> Iterator[Entry]:
        shape = hdus[0].shape
        if len(hdus) > 1:
            if any(hdu.shape != shape for hdu in hdus) or len(shape) != 2:
                raise InputError("its HDUs are not images of one size, a band each")
            if start == 0:
                yield flux_item(self.name, _native(np.stack([h.data for h in hdus])), self._stretch)
        elif len(shape) == 4:
            for row in range(start, shape[0]):
                flux = _native(hdus[0].section[row])
                yield flux_item(f"{self.name}#{row}", flux, self._stretch)
        elif start == 0:
            yield self._one(hdus[0], shape)

    def _one(self, hdu: Any, shape: tuple[int, ...]) -> Entry:
        if len(shape) == 3:
            # Bands that nobody asked for stay unread.
            places = select_places(self._stretch.bands, shape[0])
            flux = np.stack([_native(hdu.section[place]) for place in places])
            return flux_item(self.name, flux, replace(self._stretch, bands=None))
        if len(shape) != 2:
            raise InputError(f"its image has shape {shape}: expected (bands, H, W) or (H, W)")
        return flux_item(self.name, _native(hdu.data), self._stretch)


def _is_image(hdu: Any) -> bool:
    return bool(hdu.is_image) and len(hdu.shape) >= 2


def _native(data: Array) -> Array:
    return np.asarray(data, np.float32)


def _fits() -> Any:
    try:
        from astropy.io import fits
    except ModuleNotFoundError:
        raise ConfigurationError(
            'reading FITS needs astropy: pip install "vim-embed[astro]"'
        ) from None
    return fits
