"""The images of a mosaic: which tiles they hold, of which bands, and windows of these.

Files are opened again as they are needed, a bounded number at once, and only the pixels of a
window are read. A file that is packed as a whole (`.fits.gz`) is unpacked to a temporary file
while it is open.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import IO, Any

import numpy as np

from vim_embed_client.bulk.sources.content import Content
from vim_embed_client.bulk.sources.cutout_masks import beside as hdu_beside
from vim_embed_client.bulk.sources.cutout_masks import flagged, mask_bits
from vim_embed_client.bulk.sources.faults import named, quiet
from vim_embed_client.bulk.sources.files import find_files
from vim_embed_client.bulk.sources.names import (
    about_missing_bands,
    band_in_name,
    look_like_bands,
)
from vim_embed_client.bulk.sources.options import ReadOptions, SkyOptions
from vim_embed_client.errors import ConfigurationError, InputError
from vim_embed_client.formats import Array
from vim_embed_client.sky.cards import described, of_planes
from vim_embed_client.sky.sections import Sections, Window
from vim_embed_client.sky.tables import split_table_name
from vim_embed_client.sky.tiles import Projection, Tile, is_surface_brightness
from vim_embed_pixels import fits, fits_library
from vim_embed_pixels.stretch import select_places

LIST_OF_CUTOUTS = "cutouts.csv"  # lies beside FITS files that `vim-embed cutout` wrote
ENDINGS = (".fits", ".fit", ".fts", ".fz", ".fits.gz", ".fits.bz2", ".fits.xz", ".fits.zst")
_OPEN = 32
_APART = 0.1  # pixels by which an image and its mask may be apart

Key = tuple[str, str, int | None]  # file, label of the HDU, plane of a cube


@dataclass(frozen=True)
class _Opened:
    """An open file, its HDUs, and those of them that hold an image. number: its descriptor.

    planes: those that were read from, by HDU and number in a cube.
    """

    file: Any
    number: int
    hdus: Sequence[Any]
    listed: Sequence[fits.Hdu]
    planes: dict[tuple[str, int | None], Sections] = field(default_factory=dict)

    def hdu(self, label: str) -> Any:
        return next(one.hdu for one in self.listed if one.label == label)

    def sections(self, label: str, plane: int | None) -> Sections:
        if (label, plane) not in self.planes:
            self.planes[label, plane] = Sections(self.hdu(label), plane, self.number)
        return self.planes[label, plane]

    def called(self, name: str, *, beside: str) -> fits.Hdu:
        """The HDU of a name or number; of several of a name, that with the EXTVER of `beside`."""
        own = next(one for one in self.listed if one.label == beside)
        return hdu_beside(self.hdus, self.listed, name, own)


class Mosaics:
    """The tiles of the images that `options.sky` names. bands: how many there are.

    whole: all planes of a cube are bands, and not only those that are shown. Raises InputError.
    """

    def __init__(self, options: ReadOptions, *, whole: bool = False) -> None:
        assert options.sky is not None
        self._options, self._sky, self._whole = options, options.sky, whole
        self._open: OrderedDict[str, tuple[ExitStack, _Opened]] = OrderedDict()
        self._masks: dict[int, tuple[list[Key], list[Key]]] = {}
        self._bits: dict[Key, int | None] = {}
        self.files = mosaic_files(self._sky)
        self.tiles: list[Tile] = []
        self.further: dict[str, list[str]] = {}  # by file, images that are not read
        try:
            with quiet():
                self.bands = self._find_tiles()
                self._find_masks()
        except BaseException:
            self.close()
            raise

    def read(self, tile: Tile, window: Window) -> tuple[Array, Array]:
        """Fluxes of a window, and which are not finite or masked. Raises InputError.

        To be called within `quiet`, which takes a while if it is done for each window.
        """
        with _about(tile.name, "cannot be read"):
            fluxes = self._section(tile.key, window)
            masked = ~np.isfinite(fluxes)
            flags, weights = self._masks.get(tile.number, ([], []))
            for key in flags:
                masked |= flagged(self._section(key, window), self._bits[key])
            for key in weights:
                masked |= ~(self._section(key, window) > 0)
        return fluxes, masked

    def close(self) -> None:
        """Close what is open; the next `read` opens it again."""
        while self._open:
            self._open.popitem()[1][0].close()

    def _section(self, key: Key, window: Window) -> Array:
        path, label, plane = key
        return self._opened(path).sections(label, plane).read(window)

    def _opened(self, path: str) -> _Opened:
        if path in self._open:
            self._open.move_to_end(path)
            return self._open[path][1]
        if len(self._open) >= _OPEN:
            self._open.popitem(last=False)[1][0].close()
        stack = ExitStack()
        with _about(path, "cannot be read as FITS"):
            opened = stack.enter_context(_opening(path))
        self._open[path] = (stack, opened)
        return opened

    def _find_tiles(self) -> int:
        """The tiles of all files, and how many bands they have."""
        bands = self._options.join_bands or ()
        filters: dict[str, str] = {}
        counts: dict[int, str] = {}
        self._check_bands()
        for path in self.files:
            found = self._tiles_of(path, filters)
            self.tiles += found
            several = len(bands) or 1 + max(tile.band for tile in found)
            counts.setdefault(several, path)
        if len(counts) > 1:
            told = ", ".join(f"{path} has {count}" for count, path in counts.items())
            raise InputError(f"the mosaics are not of the same number of bands: {told}")
        count = next(iter(counts))
        if len(filters) > 1:
            told = ", ".join(f"{path} {name}" for name, path in filters.items())
            raise InputError(
                f"the mosaics are of several bands ({told}): --join-bands R,G,B makes one image "
                "of them, or give those of one band"
            )
        self._refuse_bands_by_name()
        self._refuse_same_pixels()
        return count

    def _check_bands(self) -> None:
        """Raise ConfigurationError unless each file is of a band to join, and each band has one."""
        bands = self._options.join_bands
        if bands is None:
            return
        others = []
        there: dict[str, list[str]] = {}
        for path in self.files:
            band = band_in_name(path, bands) or self._band_of_filters(path, bands)
            others += [path] if band is None else []
            there.setdefault(band or "", []).append(path)
        if lacks := about_missing_bands(there, bands, others):
            raise ConfigurationError(lacks)
        if others:
            raise ConfigurationError(
                f"neither the name nor the FILTER of {others[0]} is one of the bands "
                f"{', '.join(bands)}: leave it out of the mosaics"
            )

    def _band_of_filters(self, path: str, bands: Sequence[str]) -> str | None:
        """The band that the FILTER of one of the HDUs that are read tells."""
        with _about(path, "cannot be used as a mosaic"):
            opened = self._opened(path)
            chosen = fits.chosen_hdus(opened.hdus, opened.listed, self._options.hdus)
            told = (_band_of_filter(_filter(one.hdu, opened), bands) for one in chosen)
            return next(filter(None, told), None)

    def _refuse_bands_by_name(self) -> None:
        """Raise InputError for bands of one image, of which one alone would be cut."""
        if self._options.join_bands is not None:
            return
        for bands in look_like_bands(self.files).values():
            first, *others = [tile for tile in self.tiles if tile.key[0] in bands.values()]
            if all(_same_pixels(first, tile) for tile in others):
                raise InputError(
                    f"{', '.join(sorted(bands.values()))} look like bands of one image: "
                    "--join-bands R,G,B makes one image of them, or give those of one band"
                )

    def _refuse_same_pixels(self) -> None:
        """Raise InputError for images of the same pixels, of which the first alone would be cut.

        Such are an image and its background, exposure or flags, whatever their names.
        """
        alike: dict[tuple[Any, ...], list[Tile]] = {}
        for tile in self.tiles:
            key = (tile.band, tile.shape, *(round(angle, 6) for angle in tile.middle))
            alike.setdefault(key, []).append(tile)
        for first, *others in alike.values():
            if (
                same := next((one for one in others if _same_pixels(first, one)), None)
            ) is not None:
                raise InputError(
                    f"{first.name} and {same.name} have the same pixels, of which one alone would "
                    "be cut: give only the images of the sky, as by a pattern such as "
                    "'*_sci.fits'"
                )

    def _tiles_of(self, path: str, filters: dict[str, str]) -> list[Tile]:
        hdus = self._options.hdus
        apart = hdus == fits.ALL_HDUS or len(hdus or ()) < 2
        found: list[Tile] = []
        with _about(path, "cannot be used as a mosaic"):
            opened = self._opened(path)
            chosen = fits.chosen_hdus(opened.hdus, opened.listed, hdus)
            self._note_further(path, opened, chosen)
            for number, one in enumerate(chosen):
                label, hdu = one.label, one.hdu
                planes = self._planes(one)
                if len(planes) > 1 and (not apart or self._options.join_bands):
                    raise InputError(f"its {label} is a cube, where one plane is wanted")
                projection = Projection(hdu.header, opened.file)
                told = _filter(hdu, opened)
                joined = self._joined_band(path, told)
                cards = described(hdu.header, opened.hdus[0].header)
                if self._whole and len(planes) > 1:
                    cards = {**cards, **of_planes(hdu.header, len(planes))}
                if joined is None and apart and len(planes) == 1:
                    filters.setdefault(told, path)
                for place, plane in enumerate(planes):
                    found.append(
                        Tile(
                            number=len(self.tiles) + len(found),
                            name=f"{path}[{label}]" if len(chosen) > 1 else path,
                            band=joined if joined is not None else place if apart else number,
                            key=(path, label, plane),
                            shape=hdu.shape[-2:],
                            projection=projection,
                            per_solid_angle=is_surface_brightness(str(hdu.header.get("BUNIT", ""))),
                            cards=cards,
                        )
                    )
            for tile in found:
                tile.check()
        return found

    def _note_further(self, path: str, opened: _Opened, chosen: Sequence[fits.Hdu]) -> None:
        """Other detectors, say, in a file of which one image was taken by itself."""
        if self._options.hdus is not None:
            return
        images = fits.chosen_hdus(opened.hdus, opened.listed, fits.ALL_HDUS)
        taken = {one.label for one in chosen}
        if others := [one.label for one in images if one.label not in taken]:
            self.further[path] = others

    def _planes(self, one: fits.Hdu) -> list[int | None]:
        shape = one.shape
        if len(shape) == 2:
            return [None]
        if set(shape[:-2]) == {1}:  # such as the axes of frequency and polarisation of one pixel
            return [0]
        if len(shape) != 3:
            raise InputError(f"its shape is {shape}: expected (H, W) or (bands, H, W)")
        if self._whole:
            return list(range(shape[0]))
        stretch = self._options.stretch.by_number(fits.band_names(one))
        colours = fits.colours(one.hdu.header, shape)
        places = select_places(stretch.bands or colours, shape[0], stretch.channels)
        return list(dict.fromkeys(places)) if len(set(places)) == 1 else list(places)

    def _joined_band(self, path: str, told: str) -> int | None:
        """The place of the file's band among those joined, by its name or its FILTER."""
        bands = self._options.join_bands
        if bands is None:
            return None
        band = band_in_name(path, bands) or _band_of_filter(told, bands)
        if band is None:
            raise InputError(
                f"neither its name nor its FILTER is one of the bands {', '.join(bands)}"
            )
        return bands.index(band)

    def _find_masks(self) -> None:
        for kind, given in enumerate((self._sky.mask, self._sky.weight)):
            if given is None:
                continue
            files = _files_of(given)
            for tile in self.tiles:
                keys = self._masks.setdefault(tile.number, ([], []))[kind]
                key = self._beside(tile, given) if files is None else self._of_grid(tile, files)
                keys.append(key)
                if kind == 0 and key not in self._bits:
                    with _about(key[0], "cannot be used as a mask"):
                        header = self._opened(key[0]).hdu(key[1]).header
                        self._bits[key] = mask_bits(self._sky.mask_flags, header)

    def _beside(self, tile: Tile, name: str) -> Key:
        """The HDU of that name in the tile's own file."""
        path, label, plane = tile.key
        with _about(path, "has no such mask"):
            found = self._opened(path).called(name, beside=label)
            if found.shape[-2:] != tile.shape:
                raise InputError(f"its {found} has other pixels than its {label}")
            if len(found.shape) > 2 and (plane is None or found.shape[0] <= plane):
                raise InputError(f"its {found} has not the planes of its {label}")
        return path, found.label, None if len(found.shape) == 2 else plane

    def _of_grid(self, tile: Tile, files: Sequence[str]) -> Key:
        """The image among `files` that lies on the sky as the tile does."""
        fitting: list[Key] = []
        for path in files:
            with _about(path, "cannot be used as a mask"):
                opened = self._opened(path)
                one = next((one for one in opened.listed if one.drawable), None)
                if one is None:
                    raise InputError("it holds no image")
                if one.shape == tile.shape and _same_grid(
                    tile, Projection(one.hdu.header, opened.file)
                ):
                    fitting.append((path, one.label, None))
        if len(fitting) > 1 and self._options.join_bands:
            band = self._options.join_bands[tile.band]
            bands = self._options.join_bands
            fitting = [key for key in fitting if band_in_name(key[0], bands) == band]
        if len(fitting) != 1:
            raise InputError(
                f"{len(fitting)} of the masks have the pixels of {tile.name}, where one should: "
                f"{', '.join(files[:3])}"
            )
        return fitting[0]


def _band_of_filter(told: str, bands: Sequence[str]) -> str | None:
    """The band that is the first word of a FILTER."""
    return next((band for band in bands if band in told.split()[:1]), None)


def _filter(hdu: Any, opened: _Opened) -> str:
    """FILTER of an HDU, or of the first one, in which HST, JWST and LSST have it."""
    found = (str(one.header.get("FILTER", "")).strip() for one in (hdu, opened.hdus[0]))
    return next(filter(None, found), "")


def mosaic_files(sky: SkyOptions) -> list[str]:
    """The FITS files named, in folders and matching patterns, without the catalogues and without
    cut-outs that `vim-embed cutout` wrote in a folder of its own below.

    Raises InputError.
    """
    named = filter(None, map(split_table_name, sky.catalogues))
    catalogues = {os.path.realpath(one.path) for one in named}
    asked_for = {os.path.realpath(path) for path in sky.images}

    @cache
    def of_cutouts(folder: str) -> bool:
        listed = os.path.isfile(os.path.join(folder, LIST_OF_CUTOUTS))
        return listed and os.path.realpath(folder) not in asked_for

    def why_not(path: str) -> str | None:
        if not path.lower().endswith(ENDINGS):
            return "it is no FITS file"
        return "it is a cut-out" if of_cutouts(os.path.dirname(path)) else None

    found = find_files(sky.images, why_not)
    images = [path for path in found if os.path.realpath(path) not in catalogues]
    if not images:
        raise InputError(f"{', '.join(found)}: it is the catalogue, where the mosaics are wanted")
    return images


def mask_files(sky: SkyOptions) -> list[str]:
    """The files among masks and weights, as opposed to HDUs."""
    given = (one for one in (sky.mask, sky.weight) if one is not None)
    return [path for one in given for path in _files_of(one) or ()]


def _files_of(given: str) -> list[str] | None:
    """The files that a name or pattern stands for, or None where it is the name of an HDU."""
    if not given.lower().endswith(ENDINGS) and not any(mark in given for mark in "/*?"):
        return None
    return find_files([given], lambda name: None)


@contextmanager
def _about(path: str, what: str) -> Iterator[None]:
    """Raise InputError that begins with the path for whatever goes wrong within."""
    try:
        with named(what):
            yield
    except InputError as error:
        told = error.message
        raise InputError(told if told.startswith(path) else f"{path}: {told}") from None


@contextmanager
def _opening(path: str) -> Iterator[_Opened]:
    library = fits_library.library()
    with _plain_file(path) as stream, library.open(stream, memmap=False) as file:
        hdus, damage = fits_library.sound_hdus(file)
        listed = fits.image_hdus(hdus)
        if not listed:
            raise InputError(damage or "it holds no image")
        for one in listed:
            fits.check_size(one, os.fstat(stream.fileno()).st_size)
        yield _Opened(file, stream.fileno(), hdus, listed)


@contextmanager
def _plain_file(path: str) -> Iterator[IO[bytes]]:
    content = Content(path, path=path)
    if not content.packed:
        with open(path, "rb") as file:
            yield file
        return
    with tempfile.NamedTemporaryFile() as unpacked:
        with content.open() as packed:
            shutil.copyfileobj(packed, unpacked, 1 << 20)
        unpacked.flush()
        with open(unpacked.name, "rb") as file:  # astropy wants one that is for reading alone
            yield file


def _same_pixels(one: Tile, other: Tile) -> bool:
    return one.shape == other.shape and _same_grid(one, other.projection)


def _same_grid(tile: Tile, other: Projection) -> bool:
    height, width = tile.shape
    x, y = np.array([0.0, width - 1, 0, width - 1]), np.array([0.0, 0, height - 1, height - 1])
    ours, theirs = other.to_pixels(*tile.projection.to_sky(x, y))
    return bool(np.abs(np.stack([ours - x, theirs - y])).max() < _APART)
