"""The images of a FITS file: which of its HDUs hold one, which is meant, and its planes.

astropy reads the file; what its parts mean is decided here, for the client and the service alike.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import IO, Any

import numpy as np

from vim_embed_pixels.errors import UnusableImage
from vim_embed_pixels.fits_library import BLOCK, library, sound_hdus
from vim_embed_pixels.names import BLUE_TO_RED, is_auxiliary, is_science, words
from vim_embed_pixels.stretch import Array, Stretch, cropped, select_places, to_rgb
from vim_embed_pixels.surveys import bands_chosen
from vim_embed_pixels.tiles import check_codec, check_heap, check_rounding, unsafe

# Words of CTYPE for wavelengths, frequencies and velocities along an axis.
_SPECTRAL = ("WAVE", "AWAV", "FREQ", "ENER", "VRAD", "VOPT", "VELO", "ZOPT", "LAMBDA")
_WAVELENGTHS = ("wavelength", "wave", "loglam", "lambda")
_MAGNITUDE = 2.5 * math.log10(math.e)  # of a natural logarithm

_STACK_AXES, _CUBES_AXES = 3, 4  # (images, H, W) and (images, bands, H, W)

_PIECE = 4096 * BLOCK  # bytes that are read at once

HduName = int | str
ALL_HDUS: tuple[HduName, ...] = ("all",)

# A compressed image that claims more pixels for each byte of its file, and is not small, lies.
_MOST_PIXELS_PER_BYTE, _SMALL = 2000, 1 << 24


@dataclass(frozen=True, kw_only=True)
class FitsOptions:
    """How one FITS file becomes one image, or one of its images.

    hdus: those that are meant, or ALL_HDUS, each of which is an image. crop: side of its middle
    square. flip: upside down. stack: the first axis of an HDU counts images.
    """

    stretch: Stretch = field(default_factory=Stretch)
    hdus: tuple[HduName, ...] | None = None
    crop: int | None = None
    flip: bool = False
    stack: bool = False

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> FitsOptions:
        """What `dataclasses.asdict` made of one, also after a way through JSON."""
        hdus = told["hdus"]
        return cls(
            stretch=Stretch.of(told["stretch"]),
            hdus=None if hdus is None else tuple(hdus),
            crop=told["crop"],
            flip=told["flip"],
            stack=told["stack"],
        )

    @property
    def several(self) -> bool:
        """Whether a file may hold several images."""
        return self.stack or self.hdus == ALL_HDUS


@dataclass(frozen=True)
class Hdu:
    """An HDU with an image. label: as ids and messages name it. spectral: it holds spectra."""

    hdu: Any
    label: str
    spectral: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.hdu.shape)

    @property
    def dtype(self) -> str:
        """Of the numbers as they are stored."""
        bits = int(self.hdu.header.get("BITPIX", -32))
        return f"float{-bits}" if bits < 0 else f"int{bits}"

    def __str__(self) -> str:
        size = "×".join(map(str, self.shape)) or "no pixels"
        return f"{self.label or 'the image'} ({size} {self.dtype})"

    @property
    def drawable(self) -> bool:
        return len(self.shape) > 1 and 0 not in self.shape

    @property
    def auxiliary(self) -> bool:
        """Whether its name, or a convention of ESO's or of LSST's, says mask, error or weight."""
        header = self.hdu.header
        told = (self.hdu.name, str(header.get("HDUCLAS2", "")), str(header.get("EXTTYPE", "")))
        return any(map(is_auxiliary, told))


class FitsImages:
    """The images of an open FITS file of `size` bytes, each drawn by itself.

    Raises UnusableImage or UnusableOptions, and whatever astropy raises for a damaged file.
    """

    def __init__(self, file: IO[bytes], size: int, options: FitsOptions) -> None:
        self._size, self._options = size, options
        self._opened = library().open(file, memmap=False)
        self._chosen = _chosen(self._opened, options)
        self._sound: list[Hdu] = []

    def close(self) -> None:
        self._opened.close()

    def count(self) -> int:
        """How many there are: one, unless `options.several`."""
        rows = (_rows(one, self._options) for one in self._chosen)
        return sum(rows) if self._options.several else 1

    def rgb(self, row: int, check: Callable[[int, int], None]) -> Array:
        """One of them as (3, H, W) uint8, its first row uppermost.

        check: is called with its width and height before its numbers are read, and may raise.
        """
        options = self._options
        chosen, at = _meant(self._chosen, options, row)
        for one in chosen:
            self._check(one, check)
        if len(chosen) > 1:
            flux, stretch = joined_planes(chosen, options.stretch)
        else:
            _check_bands(chosen[0], chosen[0].shape[len(at) :], options)
            flux, stretch = planes_of(chosen[0], options.stretch, at)
        turned = upwards(chosen[0].hdu) != options.flip
        pixels = to_rgb(cropped(flux, options.crop), stretch)
        return pixels[:, ::-1] if turned else pixels

    def _check(self, one: Hdu, check: Callable[[int, int], None]) -> None:
        """Whatever is of an HDU, and not of one of its images, once."""
        known = any(one is other for other in self._sound)
        if not known:
            check_size(one, self._size)
        check(one.shape[-1], one.shape[-2])
        if not known:
            check_scaling(one)
            check_data(one)
            self._sound.append(one)


def rgb_of(
    file: IO[bytes], size: int, options: FitsOptions, check: Callable[[int, int], None]
) -> Array:
    """The image of a FITS file that is meant, or its first, as `FitsImages` has it."""
    with closing(FitsImages(file, size, options)) as images:
        return images.rgb(0, check)


def _chosen(opened: Any, options: FitsOptions) -> list[Hdu]:
    hdus, damage = sound_hdus(opened)
    listed = image_hdus(hdus)
    if damage and not listed:
        raise UnusableImage(damage)
    chosen = chosen_hdus(hdus, listed, options.hdus)
    if damage and _depends_on_all(options.hdus, chosen):
        raise UnusableImage(f"{damage}: name the image that is meant with --hdu")
    if options.stack and len(chosen) > 1 and options.hdus != ALL_HDUS:
        raise UnusableImage("--stack is for an HDU of several images: name one HDU, or all")
    if options.stack and all(len(one.shape) < _STACK_AXES for one in chosen):
        raise UnusableImage(f"it is no stack of images ({told(chosen)}): leave --stack out")
    return chosen


def _depends_on_all(wanted: Sequence[HduName] | None, chosen: Sequence[Hdu]) -> bool:
    """Whether other HDUs could be chosen if there were more of them."""
    if wanted is None:
        return not is_science(chosen[0].hdu.name)
    return wanted == ALL_HDUS or from_the_end(wanted)


def from_the_end(wanted: Sequence[HduName] | None) -> bool:
    """Whether a number counts from the last HDU, and so needs all of them."""
    return any(isinstance(name, int) and name < 0 for name in wanted or ())


def _meant(
    chosen: Sequence[Hdu], options: FitsOptions, row: int
) -> tuple[Sequence[Hdu], tuple[int, ...]]:
    """The HDUs of an image, and its place along their first axes."""
    if not options.several:
        if len(chosen) > 1:
            return chosen, ()
        _rows(chosen[0], options)
        return chosen, (0,) * (len(chosen[0].shape) - _STACK_AXES)
    left = row
    for one in chosen:
        rows = _rows(one, options)
        if left < rows:
            stacked = options.stack and len(one.shape) >= _STACK_AXES
            return [one], (left,) if stacked else (0,) * (len(one.shape) - _STACK_AXES)
        left -= rows
    raise UnusableImage(f"it has no image {row}")


def _rows(one: Hdu, options: FitsOptions) -> int:
    """How many images an HDU is; raises UnusableImage for more than are asked for."""
    shape = one.shape
    if options.stack and _STACK_AXES <= len(shape) <= _CUBES_AXES:
        return shape[0]
    if len(shape) > _CUBES_AXES:
        raise UnusableImage(
            f"its shape is {shape}: (images, bands, H, W) are the most axes that are read"
        )
    if len(shape) == _CUBES_AXES and shape[0] > 1:
        raise UnusableImage(
            f"its shape is {shape}, which are several images: --stack makes a row of each"
        )
    return 1


def _check_bands(one: Hdu, shape: tuple[int, ...], options: FitsOptions) -> None:
    """Raise UnusableImage for a cube of which nothing says what is red, green and blue, and for
    bands that are chosen where there is one."""
    if len(shape) == 2 and bands_chosen(options.stretch).bands is not None:
        raise UnusableImage("it is one band, so that --bands has no effect: leave it out")
    bands = shape[0] if len(shape) > 2 else 1
    chosen = options.stretch.by_number(band_names(one)).bands
    if bands > 1 and chosen is None and colours(one.hdu.header, shape) is None:
        raise UnusableImage(f"it has {bands} bands: choose one or three with --bands R,G,B")


def image_hdus(hdus: Sequence[Any]) -> list[Hdu]:
    """Those that hold an image of any shape, named so that no two have one name."""
    images = [
        (number, hdu)
        for number, hdu in enumerate(hdus)
        if hdu.is_image and getattr(hdu, "shape", ())
    ]
    times = Counter(hdu.name for _, hdu in images)
    labels: set[str] = set()
    listed = []
    for number, hdu in images:
        label = hdu.name if times[hdu.name] == 1 else f"{hdu.name},{hdu.ver}"
        label = str(number) if not hdu.name or label in labels else label
        labels.add(label)
        listed.append(Hdu(hdu, label, _is_spectral(hdu, images)))
    return listed


def _is_spectral(hdu: Any, images: Sequence[tuple[int, Any]]) -> bool:
    """Whether each row of an image is a spectrum: by its CTYPE1, or by wavelengths beside it.

    Such are `B_FLUX` (spectra, n) and `B_WAVELENGTH` (n,) of DESI.
    """
    kind = str(hdu.header.get("CTYPE1", "")).strip().upper()
    if kind.startswith(_SPECTRAL) or "COEFF0" in hdu.header:
        return True
    return any(
        other.shape in (hdu.shape[-1:], hdu.shape) and set(words(other.name)) & set(_WAVELENGTHS)
        for _, other in images
    )


def hdu_named(hdus: Sequence[Any], listed: Sequence[Hdu], name: HduName) -> Hdu:
    """The HDU of a name (`SCI`, `SCI:2` with its EXTVER) or number. Raises UnusableImage."""
    found = _at(hdus, name) if isinstance(name, int) else _called(hdus, name)
    if found is None:
        names = [f"{number} {hdu.name}".strip() for number, hdu in enumerate(hdus)]
        raise UnusableImage(f"it has no HDU {name}: it has {', '.join(names)}")
    for one in listed:
        if one.hdu is found and one.drawable:
            return one
    raise UnusableImage(f"its HDU {name} holds no image: it has {told(listed) or 'none'}")


def _at(hdus: Sequence[Any], number: int) -> Any:
    return hdus[number] if -len(hdus) <= number < len(hdus) else None


def _called(hdus: Sequence[Any], name: str) -> Any:
    base, _, version = name.upper().partition(":")
    return next(
        (hdu for hdu in hdus if hdu.name.upper() == base and version in ("", str(hdu.ver))), None
    )


def told(hdus: Sequence[Hdu]) -> str:
    """Their names, sizes and dtypes, for messages."""
    return ", ".join(map(str, hdus))


def is_table(hdu: Any) -> bool:
    """Whether an HDU is a table, such as a catalogue."""
    return type(hdu).__name__ in ("BinTableHDU", "TableHDU")


def chosen_hdus(
    hdus: Sequence[Any], listed: Sequence[Hdu], wanted: Sequence[HduName] | None
) -> list[Hdu]:
    """Those that are meant by names or numbers; without any, the first that is named as science,
    else the first that is not named as something else. Raises UnusableImage."""
    if wanted is not None and wanted != ALL_HDUS:
        return [hdu_named(hdus, listed, name) for name in wanted]
    images = [one for one in listed if one.drawable and not one.auxiliary]
    candidates = [one for one in images if not one.spectral]
    if not candidates and images:
        raise UnusableImage(f"it holds spectra and no image: it has {told(listed)}")
    tables = [hdu.name or "a table" for hdu in hdus if is_table(hdu)]
    if not listed and tables:
        raise UnusableImage(
            f"it holds no image but tables ({', '.join(tables)}): `vim-embed embed` takes images "
            "from a column of one"
        )
    if not candidates:
        choice = "; --hdu takes one of them" if any(one.drawable for one in listed) else ""
        why = f": it has {told(listed)}{choice}" if listed else ""
        raise UnusableImage(f"it holds no image{why}")
    if wanted == ALL_HDUS:
        return candidates
    science = [one for one in candidates if is_science(one.hdu.name)]
    return [*science, *candidates][:1]


def planes_of(one: Hdu, stretch: Stretch, at: tuple[int, ...] = ()) -> tuple[Array, Stretch]:
    """The (H, W) or (bands, H, W) fluxes of an image, or of what is at a place of its first axis.

    Bands that the stretch does not take stay unread, and the stretch that comes back takes all.
    """
    shape, whole = one.shape[len(at) :], (slice(None), slice(None))
    stretch = stretch.calibrated(one.hdu.header)
    if len(shape) == 2:
        return _section(one.hdu, (*at, *whole)), stretch
    chosen = stretch.by_number(band_names(one)).bands
    if chosen is None and stretch.channels == 3:
        chosen = colours(one.hdu.header, one.shape)
    places = select_places(chosen, shape[0], stretch.channels)
    flux = np.stack([_section(one.hdu, (*at, place, *whole)) for place in places])
    return flux, replace(stretch, bands=None)


def joined_planes(chosen: Sequence[Hdu], stretch: Stretch) -> tuple[Array, Stretch]:
    """The fluxes of HDUs that are a band each. Raises UnusableImage where they differ in size."""
    shape = chosen[0].shape
    if any(one.shape != shape for one in chosen) or len(shape) != 2:
        raise UnusableImage(f"its HDUs are not images of one size, a band each: {told(chosen)}")
    stretch = bands_chosen(stretch) if len(chosen) == 3 else stretch
    stretch = stretch.by_number([one.label for one in chosen])
    places = select_places(stretch.bands, len(chosen), stretch.channels)
    flux = np.stack([_section(chosen[place].hdu, (slice(None),) * 2) for place in places])
    stretch = stretch.of_bands([stretch.calibrated(chosen[p].hdu.header) for p in places])
    return flux, replace(stretch, bands=None)


def band_names(one: Hdu) -> tuple[str, ...]:
    """Names of the planes of a cube, where its header tells them: `BANDS = 'grizy'`, or `BAND0`
    (or `BAND1`) and so on."""
    return _band_names(one.hdu.header, one.shape[-3]) if len(one.shape) > 2 else ()


def _band_names(header: Any, count: int) -> tuple[str, ...]:
    bands = str(header.get("BANDS", "")).strip()
    split = tuple(bands.replace(",", " ").split())
    for names in (split, tuple("".join(split))):
        if len(names) == count:
            return names
    for first in (0, 1):
        keys = [f"BAND{place}" for place in range(first, first + count)]
        if all(key in header for key in keys):
            return tuple(str(header[key]).strip() for key in keys)
    return ()


def check_data(one: Hdu) -> None:
    """Raise UnusableImage where an HDU's data are not those for which its DATASUM was written.

    CHECKSUM, which is of the header too, is not compared: many tools edit headers and leave it.
    """
    table = getattr(one.hdu, "_bintable", None)  # of the tiles that a compressed image is
    hdu = one.hdu if table is None else table
    told, place = str(hdu.header.get("DATASUM", "")).strip(), hdu.fileinfo()
    if not told or not place or place.get("datLoc") is None:
        return
    if not told.isdecimal() or int(told) != _data_sum(place):
        raise UnusableImage(
            f"the data of {one.label or 'its image'} are not those for which its DATASUM was "
            "written: the file is damaged; if it was changed on purpose, write its sums anew "
            "(astropy's add_checksum) or take DATASUM out"
        )


def _data_sum(place: Mapping[str, Any]) -> int:
    """The ones' complement sum of an HDU's data as 32-bit words, big-endian. place: `fileinfo`."""
    total, left = 0, int(place["datSpan"])
    place["file"].seek(place["datLoc"])
    while left > 0 and (piece := place["file"].read(min(left, _PIECE))):
        total += int(np.frombuffer(piece[: len(piece) // 4 * 4], ">u4").sum(dtype=np.uint64))
        total += int.from_bytes(piece[len(piece) // 4 * 4 :].ljust(4, b"\0"), "big")
        left -= len(piece)
    while total >> 32:
        total = (total & 0xFFFFFFFF) + (total >> 32)
    return total


def check_scaling(one: Hdu) -> None:
    """Raise UnusableImage where the keys by which whole numbers become fluxes are none.

    astropy passes over such a BLANK, so that pixels without a value would be shown.
    """
    header, whole = one.hdu.header, one.hdu.header.get("BITPIX", 0) > 0
    for key, kinds, what in (
        ("BSCALE", (int, float), "number"),
        ("BZERO", (int, float), "number"),
        ("BLANK", (int, type(None)) if whole else (object,), "whole number"),
    ):
        value = header.get(key, 0)
        if not isinstance(value, kinds) or (isinstance(value, bool) and whole):
            raise UnusableImage(f"its {key} is {value!r}, and no {what}: correct its header")


def check_size(one: Hdu, file_bytes: int) -> None:
    """Raise UnusableImage for a compressed image that claims more than its file can hold, or has
    another number of tiles than its size takes, or tiles that cannot be checked."""
    if type(one.hdu).__name__ != "CompImageHDU":
        return
    check_codec(one.hdu)
    pixels = int(np.prod(one.shape, dtype=object))
    if pixels > max(_SMALL, _MOST_PIXELS_PER_BYTE * file_bytes):
        raise UnusableImage(f"it claims {pixels:,} pixels, more than its file can hold")
    tiles = math.prod(
        -(-side // max(1, tile)) for side, tile in zip(one.shape, one.hdu.tile_shape, strict=True)
    )
    table = getattr(one.hdu, "_bintable", None)
    if table is None:
        raise unsafe("it is a compressed image, which is")
    rows = int(table.header["NAXIS2"])  # a tile each
    if tiles != rows:
        raise UnusableImage(
            f"its compressed image of {pixels:,} pixels has {rows} tiles, and {tiles} make such an "
            "image: the file is damaged or cut short"
        )
    check_rounding(one.hdu, table)
    check_heap(table)


def _section(hdu: Any, at: tuple[Any, ...]) -> Array:
    return linear(np.asarray(hdu.section[at]), hdu.header)


def linear(pixels: Array, header: Any) -> Array:
    """The fluxes that pixels stand for: Pan-STARRS writes arcsinh of them (`BSOFTEN`, `BOFFSET`).

    Whole numbers that the header does not scale, such as flags, stay as they are.
    """
    arcsinh = arcsinh_of(header)
    return pixels if arcsinh is None else from_arcsinh(pixels, *arcsinh)


def arcsinh_of(header: Any) -> tuple[float, float] | None:
    """Softening and offset of an image that holds the arcsinh of its fluxes, None for others."""
    softening, offset = header.get("BSOFTEN"), header.get("BOFFSET", 0.0)
    flags = header["BITPIX"] > 0 and header.get("BSCALE", 1) == 1
    if not isinstance(softening, int | float) or softening <= 0 or flags:
        return None
    return softening, offset


def from_arcsinh(pixels: Array, softening: float, offset: float) -> Array:
    """The fluxes of pixels as `linear` describes them, at least float32."""
    with np.errstate(over="ignore"):
        found: Array = offset + 2 * softening * np.sinh(pixels.astype(np.float64) / _MAGNITUDE)
        return found.astype(np.result_type(pixels.dtype, np.float32))


def upwards(hdu: Any) -> bool:
    """FITS counts rows from the lowest, unless the header says otherwise."""
    return str(hdu.header.get("ROWORDER", "")).strip().upper() != "TOP-DOWN"


def colours(header: Any, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Places of red, green and blue where the header says what three planes are, or None."""
    if len(shape) < 3 or shape[-3] != 3:
        return None
    if str(header.get("CTYPE3", "")).strip().upper() == "RGB":
        return 0, 1, 2
    bands = "".join(_band_names(header, 3)).lower()
    if len(set(bands) & set(BLUE_TO_RED)) != 3 or len(bands) != 3:
        return None
    red_first = sorted(range(3), key=lambda place: -BLUE_TO_RED.index(bands[place]))
    return red_first[0], red_first[1], red_first[2]
