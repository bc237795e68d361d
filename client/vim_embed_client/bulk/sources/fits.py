"""Rows of FITS files: images, cubes of bands, and stacks of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from vim_embed_client.bulk.sources.content import Content
from vim_embed_client.bulk.sources.faults import described
from vim_embed_client.bulk.sources.flux import Stretch, select_places
from vim_embed_client.bulk.sources.layout import Layout, bands_chosen, flux_item, layout_of
from vim_embed_client.bulk.sources.names import BLUE_TO_RED, is_auxiliary, is_science
from vim_embed_client.bulk.sources.options import ALL_HDUS, FLUX_OPTIONS, HduName, ReadOptions
from vim_embed_client.bulk.sources.reader import (
    Description,
    Entry,
    FileReader,
    Image,
    Skipped,
    readable,
)
from vim_embed_client.errors import ConfigurationError, InputError
from vim_embed_client.formats import Array

# A compressed image that claims more pixels for each byte of its file, and is not small, lies.
_MOST_PIXELS_PER_BYTE, _SMALL = 2000, 1 << 24
_FLOATS = np.dtype(np.float32)  # what astropy may scale any image to


@dataclass(frozen=True)
class _Hdu:
    """An HDU with an image. label: as ids and messages name it."""

    hdu: Any
    label: str

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.hdu.shape)

    @property
    def drawable(self) -> bool:
        return len(self.shape) > 1 and 0 not in self.shape

    @property
    def auxiliary(self) -> bool:
        """Whether its name, or a convention of ESO's or of LSST's, says mask, error or weight."""
        header = self.hdu.header
        told = (self.hdu.name, str(header.get("HDUCLAS2", "")), str(header.get("EXTTYPE", "")))
        return any(map(is_auxiliary, told))


@dataclass(frozen=True)
class _Part:
    """Some entries of a file, counted before they are read."""

    entries: int
    read: Callable[[int], Iterator[Entry]]


class FitsReader(FileReader):
    """A FITS file: a row of an (H, W) image or (bands, H, W) cube, N of an (N, bands, H, W).

    Without `hdus`, of the first extension that is named as an image, else of the first that is
    not named as something else, such as a mask.
    """

    def __init__(self, content: Content, options: ReadOptions) -> None:
        super().__init__(content)
        self._options = options

    def describe(self) -> Description:
        with self._open() as file:
            hdus, _ = _sound(file)
            listed = _listed(hdus)
            chosen = self._chosen(hdus, listed) if listed else []
            effective = frozenset({"--hdu", "--flip"}).union(*map(self._effective, chosen))
            return Description(
                images=tuple(_described(one, self._note(one, chosen)) for one in listed),
                upwards=not chosen or _upwards(chosen[0].hdu),
                options=effective,
            )

    def _effective(self, one: _Hdu) -> frozenset[str]:
        return self._layout(one).options if self._apart else FLUX_OPTIONS

    def read(self, start: int) -> Iterator[Entry]:
        with self._open() as file:
            for part in self._parts(file):
                if start < part.entries:
                    yield from part.read(start)
                start = max(0, start - part.entries)

    @contextmanager
    def _open(self) -> Iterator[Any]:
        fits = _fits()
        # Sections are read as they are asked for; a map would count as this process's memory.
        with self.content.open() as opened, fits.open(opened, memmap=False) as file:
            yield file

    @property
    def _all(self) -> bool:
        return self._options.hdus == ALL_HDUS

    @property
    def _apart(self) -> bool:
        """Whether each HDU chosen is an image of its own, and not a band."""
        return self._all or len(self._options.hdus or ()) < 2

    def _parts(self, file: Any) -> list[_Part]:
        hdus, damage = _sound(file)
        listed = _listed(hdus)
        tables = [hdu.name or "a table" for hdu in hdus if _is_table(hdu)]
        parts = [self._passed(damage, fault=True)] if damage else []
        if not listed and tables:
            return [self._passed(f"it holds no image but tables ({', '.join(tables)})"), *parts]
        if not listed and damage:
            return parts
        chosen = self._chosen(hdus, listed)
        rows = [self._part(one) for one in chosen] if self._apart else [self._joined(chosen)]
        notes = [(one, self._note(one, chosen)) for one in listed]
        return rows + [self._passed(note, f"[{one.label}]") for one, note in notes if note] + parts

    def _joined(self, chosen: Sequence[_Hdu]) -> _Part:
        return _Part(1, lambda start: iter([self._of_bands(chosen)]))

    def _passed(self, note: str, label: str = "", *, fault: bool = False) -> _Part:
        entry = Skipped(id=f"{readable(self.name)}{label}", reason=note, fault=fault)
        return _Part(1, lambda start: iter([entry]))

    def _chosen(self, hdus: Sequence[Any], listed: Sequence[_Hdu]) -> list[_Hdu]:
        if self._options.hdus is not None and not self._all:
            return [_named(hdus, listed, name) for name in self._options.hdus]
        candidates = [one for one in listed if one.drawable and not one.auxiliary]
        if not candidates:
            why = f": it has {_told(listed)}; --hdu takes one of them" if listed else ""
            raise InputError(f"it holds no image{why}")
        if self._all:
            return candidates
        science = [one for one in candidates if is_science(one.hdu.name)]
        return [*science, *candidates][:1]

    def _note(self, one: _Hdu, chosen: Sequence[_Hdu]) -> str:
        """Why an HDU is passed over; nothing where it is taken, or the user chose others."""
        if any(one.hdu is other.hdu for other in chosen):
            return ""
        if self._options.hdus is not None and not self._all:
            return ""
        if not one.drawable:
            return f"its image has shape {one.shape}"
        taken = ", ".join(other.label for other in chosen[:3])
        if one.auxiliary:
            return f"by its name a mask, error or weight (--hdu chooses); taken: {taken}"
        return f"a further image (--hdu all makes a row of each); taken: {taken}"

    def _layout(self, one: _Hdu) -> Layout:
        _check_size(one, self.content)
        colours = _colours(one.hdu.header, one.shape)
        return layout_of(
            one.shape, _FLOATS, self._options, always_fluxes=True, are_bands=colours is not None
        )

    def _part(self, one: _Hdu) -> _Part:
        row_id = readable(f"{self.name}[{one.label}]" if self._all else self.name)
        try:
            layout = self._layout(one)
        except InputError as error:
            if not self._all:
                raise
            fault = Skipped(id=row_id, reason=error.message)
            return _Part(1, lambda start: iter([fault]))
        if layout.rows is None:
            return _Part(1, lambda start: iter([self._row(one, row_id, ())]))
        return _Part(layout.rows, partial(self._rows, one, row_id, layout.rows))

    def _rows(self, one: _Hdu, row_id: str, rows: int, start: int) -> Iterator[Entry]:
        for row in range(start, rows):
            yield self._row(one, f"{row_id}#{row}", (row,))

    def _row(self, one: _Hdu, row_id: str, at: tuple[int, ...]) -> Entry:
        """The image, or what is at a place of its first axis; bands not asked for stay unread."""
        shape, stretch = one.shape[len(at) :], self._options.stretch
        whole = (slice(None), slice(None))
        if len(shape) == 2:
            flux = _section(one.hdu, (*at, *whole))
        else:
            bands = stretch.bands or _colours(one.hdu.header, one.shape)
            places = select_places(bands, shape[0])
            flux = np.stack([_section(one.hdu, (*at, place, *whole)) for place in places])
            stretch = replace(stretch, bands=None)
        return self._item(row_id, flux, stretch, one.hdu)

    def _of_bands(self, chosen: Sequence[_Hdu]) -> Entry:
        shape = chosen[0].shape
        if any(one.shape != shape for one in chosen) or len(shape) != 2:
            raise InputError(f"its HDUs are not images of one size, a band each: {_told(chosen)}")
        stretch = self._options.stretch
        stretch = bands_chosen(stretch) if len(chosen) == 3 else stretch
        places = select_places(stretch.bands, len(chosen))
        flux = np.stack([_section(chosen[place].hdu, (slice(None),) * 2) for place in places])
        return self._item(readable(self.name), flux, replace(stretch, bands=None), chosen[0].hdu)

    def _item(self, row_id: str, flux: Array, stretch: Stretch, hdu: Any) -> Entry:
        return flux_item(row_id, flux, stretch, flip=_upwards(hdu) != self._options.flip)


def _sound(file: Any) -> tuple[list[Any], str]:
    """The HDUs up to the first that is damaged, and what is wrong with that one, or nothing.

    astropy goes round in circles where an HDU claims a negative size, so that each must begin
    behind the one before it.
    """
    found: list[Any] = []
    try:
        for hdu in file:
            end = found[-1]._data_offset if found else -1
            if hdu._data_offset is not None and hdu._data_offset <= end:
                return found, f"its HDU {len(found)} lies before the one before it"
            found.append(hdu)
    except Exception as error:  # astropy raises errors of every kind
        if not found:
            raise
        return found, f"its HDU {len(found)} cannot be read ({described(error)})"
    return found, ""


def _listed(hdus: Sequence[Any]) -> list[_Hdu]:
    """Those that hold an image of any shape, named so that no two have one name."""
    images = [(number, hdu) for number, hdu in enumerate(hdus) if hdu.is_image and hdu.shape]
    times = Counter(hdu.name for _, hdu in images)
    labels: set[str] = set()
    listed = []
    for number, hdu in images:
        label = hdu.name if times[hdu.name] == 1 else f"{hdu.name},{hdu.ver}"
        label = str(number) if not hdu.name or label in labels else label
        labels.add(label)
        listed.append(_Hdu(hdu, label))
    return listed


def _named(hdus: Sequence[Any], listed: Sequence[_Hdu], name: HduName) -> _Hdu:
    """The HDU of a name (`SCI`, `SCI:2` with its EXTVER) or number. Raises InputError."""
    found = _at(hdus, name) if isinstance(name, int) else _called(hdus, name)
    if found is None:
        names = [f"{number} {hdu.name}".strip() for number, hdu in enumerate(hdus)]
        raise InputError(f"it has no HDU {name}: it has {', '.join(names)}")
    for one in listed:
        if one.hdu is found and one.drawable:
            return one
    raise InputError(f"its HDU {name} holds no image: it has {_told(listed) or 'none'}")


def _at(hdus: Sequence[Any], number: int) -> Any:
    return hdus[number] if -len(hdus) <= number < len(hdus) else None


def _called(hdus: Sequence[Any], name: str) -> Any:
    base, _, version = name.upper().partition(":")
    return next(
        (hdu for hdu in hdus if hdu.name.upper() == base and version in ("", str(hdu.ver))), None
    )


def _told(hdus: Sequence[_Hdu]) -> str:
    return ", ".join(str(_described(one)) for one in hdus)


def _described(one: _Hdu, note: str = "") -> Image:
    bits = int(one.hdu.header.get("BITPIX", -32))
    dtype = f"float{-bits}" if bits < 0 else f"int{bits}"
    return Image(name=one.label, shape=one.shape, dtype=dtype, note=note)


def _is_table(hdu: Any) -> bool:
    return type(hdu).__name__ in ("BinTableHDU", "TableHDU")


def _check_size(one: _Hdu, content: Content) -> None:
    pixels = int(np.prod(one.shape, dtype=object))
    packed = type(one.hdu).__name__ == "CompImageHDU"
    if packed and pixels > max(_SMALL, _MOST_PIXELS_PER_BYTE * content.size()):
        raise InputError(f"it claims {pixels:,} pixels, more than its file can hold")


def _section(hdu: Any, at: tuple[Any, ...]) -> Array:
    section: Array = np.asarray(hdu.section[at])
    return section


def _upwards(hdu: Any) -> bool:
    """FITS counts rows from the lowest, unless the header says otherwise."""
    return str(hdu.header.get("ROWORDER", "")).strip().upper() != "TOP-DOWN"


def _colours(header: Any, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Places of red, green and blue where the header says what three planes are, or None."""
    if len(shape) < 3 or shape[-3] != 3:
        return None
    if str(header.get("CTYPE3", "")).strip().upper() == "RGB":
        return 0, 1, 2
    bands = str(header.get("BANDS", "")).strip().lower().replace(",", "")
    if len(bands) != 3:
        bands = "".join(str(header.get(f"BAND{place}", "")).strip().lower() for place in range(3))
    if len(set(bands) & set(BLUE_TO_RED)) != 3 or len(bands) != 3:
        return None
    red_first = sorted(range(3), key=lambda place: -BLUE_TO_RED.index(bands[place]))
    return red_first[0], red_first[1], red_first[2]


def _fits() -> Any:
    try:
        from astropy.io import fits
    except ModuleNotFoundError:
        raise ConfigurationError(
            'reading FITS needs astropy: pip install "vim-embed[astro]"'
        ) from None
    return fits
