"""Rectangles of pixels out of the images of open FITS files, without the rest of the image."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from vim_embed_client.errors import InputError
from vim_embed_client.formats import Array
from vim_embed_client.sky.read_ahead import ask_for
from vim_embed_pixels.fits import arcsinh_of, from_arcsinh

_PLAIN = ("PrimaryHDU", "ImageHDU")
_DTYPES = {8: ">u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}


@dataclass(frozen=True, slots=True)
class Window:
    """Rows `bottom` to `top` and columns `left` to `right` of an image, as slices have them."""

    bottom: int
    top: int
    left: int
    right: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.top - self.bottom, self.right - self.left

    @property
    def empty(self) -> bool:
        return min(self.shape) <= 0

    def within(self, shape: tuple[int, int]) -> bool:
        """Whether an image of this shape has all of it."""
        return min(self.bottom, self.left) >= 0 and self.top <= shape[0] and self.right <= shape[1]

    def moved(self, up: int, across: int) -> Window:
        return Window(self.bottom + up, self.top + up, self.left + across, self.right + across)


class Sections:
    """One plane of an HDU, read window by window.

    plane: in a cube, or in more axes of which all others are of one pixel. file: the plain file of
    the disk that holds the HDU as it is, where there is one: its rows are then read one by one,
    which takes a twentieth of the time that astropy's sections take, and no memory map, whose pages
    count as memory of this process.
    """

    def __init__(self, hdu: Any, plane: int | None, file: int | None) -> None:
        self._hdu, self._plane = hdu, plane
        header = hdu.header
        self._arcsinh = arcsinh_of(header)  # now: astropy takes cards away as it reads
        self.shape: tuple[int, int] = tuple(hdu.shape[-2:])
        self._scale, self._zero = header.get("BSCALE", 1.0), header.get("BZERO", 0.0)
        self._blank = header.get("BLANK") if header["BITPIX"] > 0 else None
        self._dtype = np.dtype(_DTYPES[header["BITPIX"]])
        self._file = file if type(hdu).__name__ in _PLAIN else None
        if self._file is not None:
            first = (plane or 0) * self.shape[0] * self.shape[1] * self._dtype.itemsize
            self._offset = int(hdu.fileinfo()["datLoc"]) + first

    def read(self, window: Window) -> Array:
        """The window as float32, or float64 where that is more. Raises InputError, OSError."""
        if self._file is None:
            rows = slice(window.bottom, window.top), slice(window.left, window.right)
            planes = (0,) * (len(self._hdu.shape) - 3)
            at = rows if self._plane is None else (*planes, self._plane, *rows)
            pixels = _floats(np.asarray(self._hdu.section[at]))
        else:
            pixels = self._scaled(self._raw(self._file, window))
        return pixels if self._arcsinh is None else from_arcsinh(pixels, *self._arcsinh)

    def _raw(self, file: int, window: Window) -> Array:
        (rows, columns), bytes_each = window.shape, self._dtype.itemsize
        line = self.shape[1] * bytes_each
        first = self._offset + window.bottom * line + window.left * bytes_each
        starts = range(first, first + rows * line, line)
        ask_for(file, starts, columns * bytes_each)
        lines = b"".join([os.pread(file, columns * bytes_each, at) for at in starts])
        if len(lines) != rows * columns * bytes_each:
            raise InputError("it ends in the middle of its image: was it cut short?")
        return np.frombuffer(lines, self._dtype).reshape(window.shape)

    def _scaled(self, raw: Array) -> Array:
        if self._blank is None and (self._scale, self._zero) == (1.0, 0.0):
            return _floats(raw)
        blank = raw == self._blank if self._blank is not None else None
        found = _floats(raw) * self._scale + self._zero
        return found if blank is None else np.where(blank, np.nan, found)


def _floats(pixels: Array) -> Array:
    single = pixels.dtype.kind == "f" and pixels.dtype.itemsize <= 4
    single |= pixels.dtype.kind in "iub" and pixels.dtype.itemsize <= 2
    found: Array = pixels.astype(np.float32 if single else np.float64)
    return found
