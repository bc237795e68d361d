"""Rows of FITS files: images, cubes of bands, and stacks of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from vim_embed_client.bulk.sources.content import Content
from vim_embed_client.bulk.sources.cutout_masks import CutoutMasks, mask_path
from vim_embed_client.bulk.sources.faults import named
from vim_embed_client.bulk.sources.layout import Layout, flux_item, layout_of
from vim_embed_client.bulk.sources.options import FLUX_OPTIONS, MASK_OPTIONS, ReadOptions
from vim_embed_client.bulk.sources.reader import (
    Description,
    Entry,
    FileReader,
    Image,
    Skipped,
    readable,
)
from vim_embed_client.errors import InputError
from vim_embed_client.formats import Array
from vim_embed_pixels import fits, fits_library
from vim_embed_pixels.stretch import Stretch

_FLOATS = np.dtype(np.float32)  # what astropy may scale any image to


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
        self._options = options.filled()

    def stamp(self) -> str:
        masks, image = self._options.masks, self.content.path or self.name
        given = (masks.mask, masks.weight) if masks else ()
        paths = [path for one in given if one and (path := mask_path(one, image))]
        stamps = [FileReader(Content(path, path=path)).stamp() for path in paths]
        return "\0".join([super().stamp(), *stamps])

    def describe(self) -> Description:
        with self._open() as file:
            hdus, _ = fits_library.sound_hdus(file)
            listed = fits.image_hdus(hdus)
            chosen = self._chosen(hdus, listed) if listed else []
            always = frozenset({"--hdu", "--flip", "--crop", "--id-header"}) | MASK_OPTIONS
            if self._options.masks is not None and self._options.masks.mask is None:
                always -= {"--mask-flags"}
            effective = always.union(*map(self._effective, chosen))
            return Description(
                images=tuple(_described(one, self._note(one, chosen)) for one in listed),
                upwards=not chosen or fits.upwards(chosen[0].hdu),
                options=effective,
            )

    def _effective(self, one: fits.Hdu) -> frozenset[str]:
        return self._layout(one).options if self._apart else FLUX_OPTIONS

    def read(self, start: int) -> Iterator[Entry]:
        with self._open() as file:
            for part in self._parts(file):
                if start < part.entries:
                    yield from part.read(start)
                start = max(0, start - part.entries)

    @contextmanager
    def _open(self) -> Iterator[Any]:
        library = fits_library.library()
        # Sections are read as they are asked for; a map would count as this process's memory.
        with self.content.open() as opened, library.open(opened, memmap=False) as file:
            yield file

    @property
    def _all(self) -> bool:
        return self._options.hdus == fits.ALL_HDUS

    @property
    def _apart(self) -> bool:
        """Whether each HDU chosen is an image of its own, and not a band."""
        return self._all or len(self._options.hdus or ()) < 2

    def _parts(self, file: Any) -> list[_Part]:
        hdus, damage = fits_library.sound_hdus(file)
        listed = fits.image_hdus(hdus)
        tables = [hdu.name or "a table" for hdu in hdus if fits.is_table(hdu)]
        parts = [self._passed(damage, fault=True)] if damage else []
        if not listed and tables:
            return [self._passed(f"it holds no image but tables ({', '.join(tables)})"), *parts]
        if damage and (not listed or fits.from_the_end(self._options.hdus)):
            return parts
        chosen = self._chosen(hdus, listed)
        masks = self._masks(hdus, listed)
        if self._apart:
            rows = [self._part(one, file, masks) for one in chosen]
        else:
            for one in chosen:
                self._check_data(one)
            rows = [_Part(1, lambda start: iter([self._of_bands(chosen, file, masks)]))]
        notes = [(one, self._note(one, chosen)) for one in listed]
        return rows + [self._passed(note, f"[{one.label}]") for one, note in notes if note] + parts

    def _masks(self, hdus: Sequence[Any], listed: Sequence[fits.Hdu]) -> CutoutMasks | None:
        if self._options.masks is None:
            return None
        path = self.content.path or self.name
        return CutoutMasks(self._options.masks, path, hdus, listed)

    def _passed(self, note: str, label: str = "", *, fault: bool = False) -> _Part:
        entry = Skipped(id=f"{readable(self.name)}{label}", reason=note, fault=fault)
        return _Part(1, lambda start: iter([entry]))

    def _chosen(self, hdus: Sequence[Any], listed: Sequence[fits.Hdu]) -> list[fits.Hdu]:
        return fits.chosen_hdus(hdus, listed, self._options.hdus)

    def _note(self, one: fits.Hdu, chosen: Sequence[fits.Hdu]) -> str:
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

    def _layout(self, one: fits.Hdu) -> Layout:
        fits.check_size(one, self.content.size())
        names = fits.band_names(one)
        are_bands = fits.colours(one.hdu.header, one.shape) is not None
        with named("it cannot be shown"):
            stretch = self._options.stretch.by_number(names)
        options = replace(self._options, stretch=stretch)
        return layout_of(one.shape, _FLOATS, options, always_fluxes=True, are_bands=are_bands)

    def _part(self, one: fits.Hdu, file: Any, masks: CutoutMasks | None) -> _Part:
        row_id = readable(f"{self.name}[{one.label}]" if self._all else self.name)
        try:
            row_id = self._id(row_id, one, file)
            self._check_data(one)
            layout = self._layout(one)
        except InputError as error:
            if not self._all:
                raise
            fault = Skipped(id=row_id, reason=error.message)
            return _Part(1, lambda start: iter([fault]))
        if layout.rows is None:
            return _Part(1, lambda start: iter([self._row(one, row_id, (), masks)]))
        return _Part(layout.rows, partial(self._rows, one, row_id, layout.rows, masks))

    def _check_data(self, one: fits.Hdu) -> None:
        with named("it cannot be shown"):
            fits.check_scaling(one)
            fits.check_data(one)

    def _id(self, row_id: str, one: fits.Hdu, file: Any) -> str:
        """The id of an HDU: `row_id`, or what its header or the first one of the file says."""
        key = self._options.id_header
        if key is None:
            return row_id
        headers = [one.hdu.header] if self._all else [one.hdu.header, file[0].header]
        found = next((text for h in headers if (text := str(h.get(key, "")).strip())), "")
        if not found:
            raise InputError(f"its header has no {key} (--id-header)")
        return found

    def _rows(
        self, one: fits.Hdu, row_id: str, rows: int, masks: CutoutMasks | None, start: int
    ) -> Iterator[Entry]:
        for row in range(start, rows):
            yield self._row(one, f"{row_id}#{row}", (row,), masks)

    def _row(
        self, one: fits.Hdu, row_id: str, at: tuple[int, ...], masks: CutoutMasks | None
    ) -> Entry:
        """The image, or what is at a place of its first axis."""
        flux, stretch = fits.planes_of(one, self._options.stretch, at)
        if masks is not None:
            flux = masks.blanked(one, flux, self._options.stretch, at)
        return self._item(row_id, flux, stretch, one.hdu)

    def _of_bands(self, chosen: Sequence[fits.Hdu], file: Any, masks: CutoutMasks | None) -> Entry:
        flux, stretch = fits.joined_planes(chosen, self._options.stretch)
        row_id = self._id(readable(self.name), chosen[0], file)
        if masks is not None:
            if len(flux) != len(chosen):
                raise InputError("its HDUs are a band each: name those that are shown with --hdu")
            pairs = zip(chosen, flux, strict=True)
            flux = np.stack([masks.blanked(one, band, Stretch(), ()) for one, band in pairs])
        return self._item(row_id, flux, stretch, chosen[0].hdu)

    def _item(self, row_id: str, flux: Array, stretch: Stretch, hdu: Any) -> Entry:
        flip, crop = fits.upwards(hdu) != self._options.flip, self._options.crop
        return flux_item(row_id, flux, stretch, crop=crop, flip=flip)


def _described(one: fits.Hdu, note: str = "") -> Image:
    return Image(name=one.label, shape=one.shape, dtype=one.dtype, note=note)
