"""Cut-outs of a mosaic at the positions of a catalogue: a row for each of the catalogue's."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from vim_embed_client.bulk.sources.content import Content
from vim_embed_client.bulk.sources.faults import named, quiet
from vim_embed_client.bulk.sources.layout import Shown
from vim_embed_client.bulk.sources.mosaics import Mosaics, mask_files, mosaic_files
from vim_embed_client.bulk.sources.options import FLUX_OPTIONS, SKY_OPTIONS, ReadOptions
from vim_embed_client.bulk.sources.reader import (
    Description,
    Entry,
    FileReader,
    Image,
    Item,
    Skipped,
    readable,
)
from vim_embed_client.bulk.sources.row_values import RowIds
from vim_embed_client.errors import ConfigurationError, InputError
from vim_embed_client.formats import Array
from vim_embed_client.sky.cards import Cards, common, of_bands
from vim_embed_client.sky.coverage import At, Nearby
from vim_embed_client.sky.cutouts import Cutout, cut
from vim_embed_client.sky.grids import AlongTile, Grid, NorthUp, wcs_cards
from vim_embed_client.sky.hats import hats_files, is_hats
from vim_embed_client.sky.positions import (
    in_other_units,
    position_columns,
    read_positions,
    table_with_positions,
)
from vim_embed_client.sky.tables import ENDINGS, Table, split_table_name
from vim_embed_client.sky.tiles import Tile
from vim_embed_pixels.fits import ALL_HDUS
from vim_embed_pixels.fits_library import library
from vim_embed_pixels.no_data import remark_on_zeros
from vim_embed_pixels.stretch import Stretch, select_places
from vim_embed_pixels.surveys import bands_chosen

_MOST_PIXELS = 8192  # along a side of a cut-out
_LEAST_PIXELS = 2
_DEGREE = 3600.0
_UNCOVERED = "no mosaic covers its position"


@dataclass(frozen=True, slots=True)
class CutRow:
    """A cut-out with its id and the columns beside it. bands: names of files or HDUs joined."""

    id: str
    cutout: Cutout
    columns: dict[str, Any]
    bands: tuple[str, ...] = ()

    def cards(self) -> Cards:
        """Of a FITS header: where its pixels lie, and what of its tiles is true of all of them."""
        planes = of_bands(self.bands) if len(self.cutout.bands) > 1 else {}
        places = {key: (value, "") for key, value in wcs_cards(self.cutout.grid).items()}
        return {**common(self.cutout.cards()), **planes, **places}


@dataclass(frozen=True, slots=True)
class _Drawn:
    """Resamples a cut-out and makes its pixels, when the row is sent."""

    cutout: Cutout
    stretch: Stretch
    flip: bool

    def __call__(self) -> Array:
        with named("its fluxes cannot be shown"):
            stretch = self._calibrated()
        return Shown(self.cutout(), stretch, None, self.flip)()

    def _calibrated(self) -> Stretch:
        """The stretch with limits in the unit of each band's fluxes."""
        how = self.stretch
        if not how.has_units:
            return how
        places = wcs_cards(self.cutout.grid)
        own = [
            how.calibrated(library().Header({**_unit(cards), **places}))
            for cards in self.cutout.cards()
        ]
        if len(own) == 1:
            return own[0]
        return how.of_bands([own[p] for p in select_places(how.bands, len(own), how.channels)])

    @property
    def note(self) -> str:
        return next(filter(None, map(remark_on_zeros, self.cutout.windows())), "")


def _unit(cards: Cards) -> dict[str, Any]:
    return {"BUNIT": cards["BUNIT"][0]} if "BUNIT" in cards else {}


class CatalogueReader(FileReader):
    """The cut-outs of `options.sky` at a catalogue's positions, in the order of its rows.

    Ids are `catalogue#row`, or the values of the id column. Beside its embedding, a row has `ra`
    and `dec` (degrees, ICRS), `off_edge` and `masked` (shares of its pixels), and what
    `options.keep` names. Positions that no image covers, and cut-outs of which too much is blank,
    are passed over. whole: all planes of cubes, as cut-outs are kept, and not those shown alone.
    """

    def __init__(self, source: str, options: ReadOptions, *, whole: bool = False) -> None:
        named = split_table_name(source)
        if named is None or named.column:
            raise ConfigurationError(
                f"{source} is no catalogue: it should end in {', '.join(ENDINGS)}, or be the "
                "folder of a HATS catalogue; it may be packed (.gz)"
            )
        super().__init__(Content(source, path=str(named.path)))
        assert options.sky is not None
        self._table_name, self._options, self._sky = named, options, options.sky
        self._whole = whole

    def stamp(self) -> str:
        files = [*mosaic_files(self._sky), *mask_files(self._sky)]
        if is_hats(self._table_name.path):
            files += hats_files(str(self._table_name.path))
        told = (os.stat(path) for path in files)
        stamps = [f"{p}\0{s.st_size}\0{s.st_mtime_ns}" for p, s in zip(files, told, strict=True)]
        return "\0".join([super().stamp(), *stamps])

    def count(self) -> int:
        return len(self._positions[0])

    def kept(self) -> dict[str, list[Any]]:
        """The columns to keep, a value for each row. Raises InputError, ConfigurationError."""
        with quiet():
            self._check_columns()
            return self._kept

    def describe(self) -> Description:
        first = replace(self._sky, images=tuple(mosaic_files(self._sky)[:1]))
        bands = self._options.join_bands
        alone = replace(self._options, sky=first, join_bands=None)
        mosaics = Mosaics(replace(alone, sky=replace(first, mask=None, weight=None)))
        mosaics.close()
        cube = any(tile.key[2] is not None for tile in mosaics.tiles)
        found = SKY_OPTIONS | FLUX_OPTIONS | {"--hdu", "--flip", "--id-column", "--keep"}
        found |= {"--join-bands"} if bands else set()
        if not cube and len(bands or ()) in (0, 3):
            found -= {"--bands"}
        if self._sky.mask is None:
            found -= {"--mask-flags"}
        images = tuple(Image(name=t.name, shape=t.shape, dtype="") for t in mosaics.tiles)
        return Description(images=images, upwards=True, options=frozenset(found))

    def read(self, start: int) -> Iterator[Entry]:
        stretch, flip = self._stretch, not self._options.flip
        for row in self.cutouts(start):
            if isinstance(row, Skipped):
                yield row
                continue
            shown = _Drawn(row.cutout, stretch, flip)
            yield Item(id=row.id, data=shown, size=row.cutout.size, columns=row.columns)

    def cutouts(self, start: int) -> Iterator[CutRow | Skipped]:
        """The cut-outs from a row of the catalogue on. Raises InputError, ConfigurationError."""
        with quiet():
            self._check_columns()
            if not self.count():
                raise InputError(f"{self._table.path} has no rows")
            mosaics = Mosaics(self._options, whole=self._whole)
        try:
            with quiet():
                nearby = self._near(mosaics, *self._positions)
            ids = self._ids()
            uncovered, off = self._uncovered(mosaics), ""
            if not len(nearby.places):
                self._check_units(mosaics)
                uncovered = self._far_away(mosaics)
            else:
                off = self._all_off_edge(mosaics, nearby)
            for row in range(start, self.count()):
                yield self._row(row, ids[row], mosaics, nearby, uncovered, off)
        finally:
            mosaics.close()

    def _near(self, mosaics: Mosaics, ra: Array, dec: Array) -> Nearby:
        return Nearby.of(mosaics.tiles, ra, dec, reach=self._size * math.sqrt(0.5))

    def _check_units(self, mosaics: Mosaics) -> None:
        """Raise InputError where positions in another unit would be on the mosaic."""
        for unit, ra, dec in in_other_units(*self._positions):
            if len(self._near(mosaics, ra, dec).places):
                angle = "deg" if unit == "hourangle" else unit
                names = [one.name for one in position_columns(self._table, self._sky.position)]
                raise InputError(
                    f"no mosaic covers any of its positions, but some if they are in {unit}: say "
                    f"so with --position '{names[0]}[{unit}],{names[1]}[{angle}]'"
                )

    def _uncovered(self, mosaics: Mosaics) -> str:
        """Why a position is on no tile: it may lie on an image that was not read."""
        if not mosaics.further:
            return _UNCOVERED
        path, labels = next(iter(mosaics.further.items()))
        more = f" and {len(labels) - 3} more" if len(labels) > 3 else ""
        return (
            f"{_UNCOVERED}, and of {path} one image alone was read: --hdu all takes its "
            f"{', '.join(labels[:3])}{more} too"
        )

    def _far_away(self, mosaics: Mosaics) -> str:
        """Why no position is covered: where the first one is, and where a mosaic."""
        there = np.flatnonzero(np.isfinite(self._positions[0]))
        if not len(there):
            return _UNCOVERED
        ra, dec = (float(one[there[0]]) for one in self._positions)
        tile = mosaics.tiles[0]
        with quiet():
            middle = tile.middle
        return (
            f"{_UNCOVERED}, nor any other of its catalogue, such as RA {ra:.4f} Dec {dec:.4f}: the "
            f"middle of {tile.name} is RA {middle[0]:.4f} Dec {middle[1]:.4f} (degrees)"
        )

    def _all_off_edge(self, mosaics: Mosaics, nearby: Nearby) -> str:
        """Why none of its positions can be cut out, as far as the outlines of the tiles tell."""
        sky, tiles = self._sky, mosaics.tiles
        with quiet():
            scale = (sky.scale or 0) / _DEGREE or max(tile.pixel_scale for tile in tiles)
            turned = sky.north_up
            least = nearby.least_off_edge(tiles, size=self._size, scale=scale, turned=turned)
            largest = max(tiles, key=lambda tile: min(tile.sides))
        if least <= sky.max_blank:
            return ""
        size = f"a cut-out of {sky.size:g} arcsec"
        off = f"{least:.0%} of it or more would be off the edge, and --max-blank allows"
        if self._size > min(largest.sides):
            field = " × ".join(f"{_DEGREE * side:.4g}" for side in largest.sides)
            which = "the mosaic" if len(tiles) == mosaics.bands else "the largest of the mosaics"
            return (
                f"{size} is larger than {which} {largest.name} of {field} arcsec: {off} "
                f"{sky.max_blank:.0%}; give a smaller --size"
            )
        return (
            f"{size} is too large for every position of its catalogue, which are all near the edge "
            f"of the mosaics: {off} {sky.max_blank:.0%}; give a smaller --size"
        )

    def _row(
        self,
        row: int,
        row_id: str | Skipped,
        mosaics: Mosaics,
        nearby: Nearby,
        uncovered: str,
        off: str,
    ) -> CutRow | Skipped:
        if isinstance(row_id, Skipped):
            return row_id
        ra, dec = (float(one[row]) for one in self._positions)
        if math.isnan(ra):
            return Skipped(
                id=row_id,
                reason="it has no position, or one that is not on the sky (RA -180 to "
                "360 degrees, Dec -90 to 90)",
                unread=True,
            )
        bands = nearby.tiles(row, mosaics.tiles, mosaics.bands)
        reference = next((tiles[0] for tiles in bands if tiles), None)
        if reference is None or off:
            why = uncovered if reference is None else off
            return Skipped(id=row_id, reason=why, fault=False, asked_for=True, unread=True)
        try:
            with quiet():
                cutout = self._cut(ra, dec, *reference, bands, mosaics)
        except InputError as error:
            return Skipped(id=row_id, reason=error.message)
        if cutout.off_edge == 1:
            return Skipped(id=row_id, reason=uncovered, fault=False, asked_for=True)
        if cutout.off_edge + cutout.masked > self._sky.max_blank:
            return Skipped(
                id=row_id,
                reason=f"of its pixels {cutout.off_edge:.1%} are off the edge and "
                f"{cutout.masked:.1%} masked, more than --max-blank allows",
                fault=False,
                asked_for=True,
            )
        columns = {"ra": ra, "dec": dec, "off_edge": cutout.off_edge, "masked": cutout.masked}
        kept = {name: values[row] for name, values in self._kept.items() if name not in columns}
        return CutRow(row_id, cutout, columns | kept, self._joined)

    def _cut(
        self,
        ra: float,
        dec: float,
        tile: Tile,
        x: float,
        y: float,
        bands: Sequence[Sequence[At]],
        mosaics: Mosaics,
    ) -> Cutout:
        scale = self._sky.scale / _DEGREE if self._sky.scale else tile.pixel_scale
        side = round(self._size / scale)
        if side < _LEAST_PIXELS:
            raise InputError(
                f"its cut-out would have {side} pixels a side of {_DEGREE * scale:.4g} arcsec: "
                f"give a larger --size, {'a smaller --scale, ' if self._sky.scale else ''}"
                "or look at the WCS of the mosaic"
            )
        if side > _MOST_PIXELS:
            raise InputError(
                f"its cut-out would have {side:,} pixels a side: give a "
                "smaller --size, or a larger --scale"
            )
        grid: Grid = NorthUp(ra, dec, scale, side)
        if not self._sky.north_up:
            step = scale / tile.pixel_scale if self._sky.scale else 1.0
            grid = AlongTile(tile, x, y, step, side)
        return cut(grid, [[at[0] for at in tiles] for tiles in bands], mosaics.read, scale)

    @property
    def _size(self) -> float:
        return self._sky.size / _DEGREE

    @property
    def _joined(self) -> tuple[str, ...]:
        """Names of the files or HDUs that are a band each."""
        hdus = self._options.hdus
        several = hdus if hdus is not None and hdus != ALL_HDUS and len(hdus) > 1 else ()
        return self._options.join_bands or tuple(map(str, several))

    @property
    def _stretch(self) -> Stretch:
        stretch = self._options.stretch
        if len(self._options.join_bands or ()) == 3:
            stretch = bands_chosen(stretch)
        elif self._options.join_bands is None:
            stretch = replace(stretch, bands=None)  # the planes that it names were cut
        fill = stretch.blank is None and self._sky.max_blank > 0
        return replace(stretch, blank="sky") if fill else stretch

    @cached_property
    def _table(self) -> Table:
        path, part, _ = self._table_name
        return table_with_positions(path, part, self._sky.position)

    @cached_property
    def _positions(self) -> tuple[Array, Array]:
        return read_positions(self._table, self._sky.position)

    @cached_property
    def _kept(self) -> dict[str, list[Any]]:
        return {name: self._table.typed(name) for name in self._options.keep}

    def _check_columns(self) -> None:
        """Raise ConfigurationError for all names of columns that are not there."""
        own = self._options.id_column
        self._table.require([*self._options.keep, *([] if own is None else [own])])

    def _ids(self) -> list[str | Skipped]:
        column = self._options.id_column
        if column is None:
            return RowIds(readable(self.name), None).numbered(self.count(), 0)
        ids = RowIds(readable(self.name), column, self._table.exact(column))
        values = [None if value == "" else value for value in self._table[column]]
        return ids.of_values(values, 0)
