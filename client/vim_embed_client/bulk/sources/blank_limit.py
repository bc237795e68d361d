"""Passes over rows of fluxes of which too much is blank, before it is filled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from vim_embed_client.bulk.sources.layout import Shown
from vim_embed_client.bulk.sources.reader import Entry, Item, Reader, ReaderOver, Skipped
from vim_embed_pixels.errors import PixelsError
from vim_embed_pixels.stretch import blank_share


class BlankLimit(ReaderOver):
    """A reader whose rows have a column `masked`: the share of their pixels that are blank.

    Blank is a pixel that is not finite in a band that is shown. Rows with a larger share than
    `most` are passed over. Rows that are no fluxes stay as they are.
    """

    def __init__(self, reader: Reader, most: float) -> None:
        super().__init__(reader)
        self._most = most

    def read(self, start: int) -> Iterator[Entry]:
        """As of the reader."""
        return map(self._limited, self._reader.read(start))

    def _limited(self, entry: Entry) -> Entry:
        if not isinstance(entry, Item) or not isinstance(entry.data, Shown):
            return entry
        try:
            share = blank_share(entry.data.fluxes, entry.data.stretch)
        except PixelsError:  # which is told where it is shown
            return entry
        if share > self._most:
            return Skipped(
                id=entry.id,
                reason=f"of its pixels {share:.1%} are masked, more than --max-blank allows",
                fault=False,
                asked_for=True,
            )
        return replace(entry, columns={**entry.columns, "masked": share})
