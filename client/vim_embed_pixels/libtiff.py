"""libtiff without a word: what it finds wrong with a file, it prints to the terminal, past Python.

Pillow's error stays. Where libtiff is no library of its own, but within Pillow's, nothing changes.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

from PIL import _imaging

_Setter = Callable[[int | None], int | None]


class _Printing:
    """Off while anybody is inside; then as it was, since the process may be somebody else's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before: list[int | None] = []

    def off(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._before = [set_handler(None) for set_handler in _setters()]
            self._inside += 1

    def back(self) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                for set_handler, before in zip(_setters(), self._before, strict=True):
                    set_handler(before)


_PRINTING = _Printing()


@contextmanager
def quiet() -> Iterator[None]:
    """Within it, libtiff prints nothing, in any thread."""
    _PRINTING.off()
    try:
        yield
    finally:
        _PRINTING.back()


@cache
def _setters() -> list[_Setter]:
    """Functions that set who is told of errors and warnings, and return who was. None: nobody."""
    try:
        library = ctypes.CDLL(_imaging.__file__)  # which finds what it is linked with, too
        setters = [library.TIFFSetErrorHandler, library.TIFFSetWarningHandler]
    except (AttributeError, OSError):
        return []
    for setter in setters:
        setter.argtypes, setter.restype = [ctypes.c_void_p], ctypes.c_void_p
    return list[_Setter](setters)
