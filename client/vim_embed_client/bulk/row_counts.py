"""How many rows there will be: counted where that is cheap, else estimated from bytes read."""

from __future__ import annotations

import os
from array import array
from collections.abc import Sequence

from vim_embed_client.bulk.pipeline import Cursor, OpenReader
from vim_embed_client.bulk.sources.reader import Reader

# Files opened to count their rows; a run should not begin with a look into each of a million.
_OPENED = 1000
_UNCOUNTED = -1


class Totals:
    """Rows of all sources, as far as known at a cursor.

    Sources whose rows cannot be counted cheaply (tar, FITS, beyond the first thousand files that
    must be opened) are taken to have as many rows per byte as those of them that were read.
    """

    def __init__(self, sources: Sequence[str], open_reader: OpenReader) -> None:
        self._sources = sources
        self._counts = array("q")
        self._blind = False  # whether there are sources that not even have a size
        self._uncounted_bytes = opened = 0
        for source in sources:
            reader: Reader = open_reader(source)
            opened += not getattr(reader, "counted_unread", False)
            count = reader.count() if opened <= _OPENED else None
            self._counts.append(_UNCOUNTED if count is None else count)
            if count is None:
                size = _size(source)
                self._uncounted_bytes += size
                self._blind |= not size
        self._counted = sum(count for count in self._counts if count != _UNCOUNTED)
        self._source = self._passed = self._read_rows = self._read_bytes = 0

    def advance(self, cursor: Cursor, done: int) -> None:
        """Take note that everything before `cursor` was read, which were `done` rows."""
        for number in range(self._source, cursor.source):
            if self._counts[number] == _UNCOUNTED:
                self._read_bytes += _size(self._sources[number])
            else:
                self._passed += self._counts[number]
        if self._source != cursor.source:
            self._read_rows = done - self._passed - cursor.row
        self._source = cursor.source

    def rows(self) -> int | None:
        """All rows; an estimate while some are uncounted, None before there is any ground."""
        if not self._uncounted_bytes:
            return None if self._blind else self._counted
        if self._blind or not self._read_bytes:
            return None
        return self._counted + round(self._read_rows * self._uncounted_bytes / self._read_bytes)


def _size(source: str) -> int:
    return os.path.getsize(source) if os.path.isfile(source) else 0
