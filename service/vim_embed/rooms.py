"""Where a body is kept while it comes in: this process's memory, or an arena; both within bounds.

Knows nothing of HTTP.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np

from vim_embed.arena import Arena
from vim_embed.budget import ByteBudget, bodies_full, never_fits


class Room(Protocol):
    """The memory of one body, of a length that is known before or not.

    All raise QueueFull, or PayloadTooLarge where the body would not fit if it were alone.
    """

    def allocate(self, size: int) -> memoryview:
        """All of it at once."""

    def append(self, data: bytes) -> None:
        """The next part of a body without a known length."""

    def whole(self) -> memoryview:
        """What was appended."""

    @contextmanager
    def working(self, size: int) -> Iterator[None]:
        """Count the working memory of reading the body, too."""

    def release(self) -> None:
        """Give all of it back; once is enough."""


class HeapRoom:
    """In this process's memory, counted by a budget."""

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self._reservation = budget.reserve(0)
        self._own = 0
        self._grown = bytearray()

    def allocate(self, size: int) -> memoryview:
        self._take(size)
        return np.empty(size, dtype=np.uint8).data

    def append(self, data: bytes) -> None:
        self._take(len(data))
        self._grown += data

    def whole(self) -> memoryview:
        return memoryview(self._grown)

    @contextmanager
    def working(self, size: int) -> Iterator[None]:
        self._take(size)
        try:
            yield
        finally:
            self._reservation.grow(-size)
            self._own -= size

    def release(self) -> None:
        self._reservation.release()
        self._grown = bytearray()

    def _take(self, size: int) -> None:
        if self._own + size > self._budget.total:
            raise never_fits(self._budget.total)
        self._reservation.grow(size)
        self._own += size


class ArenaRoom:
    """In an arena, whose size is the bound. `place` is (offset, size) once there is something."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._offset = 0
        self._capacity = 0  # taken from the arena
        self._filled = 0
        self._working = 0

    @property
    def place(self) -> tuple[int, int]:
        return self._offset, self._filled

    def allocate(self, size: int) -> memoryview:
        self._offset, self._capacity, self._filled = self._taken(size), size, size
        return self._arena.view(self._offset, size)

    def append(self, data: bytes) -> None:
        end = self._filled + len(data)
        if end > self._capacity:
            self._widen(end)
        self._arena.view(self._offset, end)[self._filled :] = data
        self._filled = end

    def whole(self) -> memoryview:
        """What was appended; what was taken beyond it goes back."""
        self._arena.shrink(self._offset, self._capacity, self._filled)
        self._capacity = self._filled
        return self._arena.view(self._offset, self._filled)

    @contextmanager
    def working(self, size: int) -> Iterator[None]:
        offset = self._taken(size)  # not written to, only kept from others
        self._working = size
        try:
            yield
        finally:
            self._arena.give_back(offset, size)
            self._working = 0

    def release(self) -> None:
        if self._capacity:
            self._arena.give_back(self._offset, self._capacity)
            self._capacity = 0

    def _taken(self, size: int) -> int:
        offset = self._arena.take(size)
        if offset is not None:
            return offset
        if size + self._working > self._arena.size:
            raise never_fits(self._arena.size)
        raise bodies_full(self._arena.held)

    def _widen(self, size: int) -> None:
        """In place if what follows is free; else in another place with room for as much again."""
        if self._capacity and self._arena.extend(self._offset, self._capacity, size):
            self._capacity = size
            return
        wanted = 2 * size if self._capacity else size
        offset = self._arena.take(wanted)
        if offset is None:
            offset, wanted = self._taken(size), size
        moved = self._arena.view(self._offset, self._filled)
        self._arena.view(offset, self._filled)[:] = moved
        self.release()
        self._offset, self._capacity = offset, wanted
