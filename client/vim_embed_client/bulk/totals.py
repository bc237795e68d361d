"""How many rows there will be: counted where that is cheap, else estimated from bytes read."""

from __future__ import annotations

import os
from collections.abc import Sequence

from vim_embed_client.bulk.items import Unit
from vim_embed_client.bulk.stream import OpenUnit, Place


class Totals:
    """Rows of all sources, as far as known at a place.

    Units whose rows cannot be counted cheaply (tar, FITS) are taken to have as many rows per byte
    as those of them that were read.
    """

    def __init__(self, sources: Sequence[str], open_unit: OpenUnit) -> None:
        self._sources = sources
        self._unknown: dict[int, int] = {}
        self._counted = 0
        for number, source in enumerate(sources):
            unit: Unit = open_unit(source)
            count = unit.count()
            if count is None:
                self._unknown[number] = _size(source)
            else:
                self._counted += count
        self._read_rows = self._read_bytes = 0
        self._at = Place()

    def advance(self, place: Place) -> None:
        """Take note that everything before `place` was read."""
        before, self._at = self._at, place
        rows = place.row - (before.row if place.unit == before.unit else 0)
        for number in range(before.unit, place.unit):
            self._read_bytes += self._unknown.get(number, 0)
        if place.unit in self._unknown:
            self._read_rows += rows

    def rows(self) -> int | None:
        """All rows; an estimate while some are uncounted, None before there is any ground."""
        if not self._unknown:
            return self._counted
        everything = sum(self._unknown.values())
        if not self._read_bytes:
            return None
        finished = self._read_rows - (self._at.row if self._at.unit in self._unknown else 0)
        return self._counted + round(finished * everything / self._read_bytes)


def _size(source: str) -> int:
    return os.path.getsize(source) if os.path.exists(source) else 0
