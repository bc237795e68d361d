"""One image of several files, a band each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from vim_embed_client.bulk.sources.faults import named
from vim_embed_client.bulk.sources.layout import Shown, flux_item
from vim_embed_client.bulk.sources.options import ReadOptions
from vim_embed_client.bulk.sources.reader import Description, Entry, Item, Reader, Skipped, readable
from vim_embed_client.errors import InputError
from vim_embed_pixels.stretch import select_places
from vim_embed_pixels.surveys import bands_chosen

OpenReader = Callable[[str], Reader]


class JoinedReader:
    """The image whose bands are files of their own, in the order red, green, blue for RGB.

    name: their path with `{r,g,b}` for the band. paths: of the bands that are there.
    """

    def __init__(
        self, name: str, paths: Mapping[str, str], options: ReadOptions, open_reader: OpenReader
    ) -> None:
        self.name = name
        self._options = options.filled()
        self._wanted = options.join_bands or ()
        self._readers = {band: open_reader(path) for band, path in paths.items()}

    def stamp(self) -> str:
        return "\0".join(reader.stamp() for reader in self._readers.values())

    def count(self) -> int:
        return 1

    def describe(self) -> Description:
        found = [reader.describe() for reader in self._readers.values()]
        effective = frozenset({"--join-bands"}).union(*(one.options for one in found))
        return Description(images=sum((one.images for one in found), ()), options=effective)

    def read(self, start: int) -> Iterator[Entry]:
        missing = [band for band in self._wanted if band not in self._readers]
        if missing:
            there = ", ".join(self._readers)
            raise InputError(f"there is no file of band {', '.join(missing)}, only of {there}")
        notes: list[Skipped] = []
        items = [self._band(band, notes) for band in self._wanted]
        shown = [one for _, one in items]
        if len({one.flux.shape for one in shown}) > 1:
            told = ", ".join(
                f"{b} {s.flux.shape}" for b, s in zip(self._wanted, shown, strict=True)
            )
            raise InputError(f"its bands are not of one size: {told}")
        stretch = self._options.stretch
        stretch = bands_chosen(stretch) if len(shown) == 3 else stretch
        with named("it cannot be shown"):
            stretch = stretch.by_number(self._wanted)
            own = [one.stretch.calibrated(None) for one in shown]
            stretch = stretch.of_bands(
                [own[place] for place in select_places(stretch.bands, len(own), stretch.channels)]
            )
        flux = np.stack([one.flux for one in shown])
        crop, flip = shown[0].crop, shown[0].flip
        row_id = items[0][0] if self._options.id_header else readable(self.name)
        item: Entry = flux_item(row_id, flux, stretch, crop=crop, flip=flip)
        entries: Sequence[Entry] = [item, *notes]
        yield from entries[start:]

    def _band(self, band: str, notes: list[Skipped]) -> tuple[str, Shown]:
        """The id and fluxes of a band's file."""
        reader = self._readers[band]
        rows = []
        for entry in reader.read(0):
            if isinstance(entry, Item):
                rows.append((entry.id, entry.data))
            elif entry.fault:
                raise InputError(f"{entry.id}: {entry.reason}")
            else:
                notes.append(entry)
        row_id, found = rows[0] if len(rows) == 1 else ("", None)
        if not isinstance(found, Shown) or found.flux.ndim != 2:
            raise InputError(f"{reader.name} is not one image of one band")
        return row_id, found
