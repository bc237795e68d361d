"""The one place where a library's exception becomes a fault that names what cannot be read.

Readers of foreign files raise errors of every kind, and other ones with every version:
CfitsioException, VerifyError, AssertionError, OverflowError, MemoryError, RecursionError, or a
warning that the user made an error. So none of them is listed. What passes unchanged is the
client's own errors (a missing package, a service that failed) and what is no fault of the file:
KeyboardInterrupt and SystemExit.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from vim_embed_client.errors import ConfigurationError, InputError, VimEmbedError
from vim_embed_pixels.errors import UnusableImage, UnusableOptions, described

__all__ = ["NoSource", "described", "each_named", "named", "quiet"]

T = TypeVar("T")


class NoSource(ValueError):
    """Nothing is wrong with an image, which is passed over for what it is, as the message says."""


@contextmanager
def named(what: str) -> Iterator[None]:
    """Raise InputError("`what` (the error)") for any exception that is not the client's own."""
    try:
        yield
    except (VimEmbedError, NoSource):
        raise
    except UnusableOptions as error:
        raise ConfigurationError(error.message) from None
    except UnusableImage as error:
        raise InputError(error.message) from None
    except Exception as error:
        raise InputError(f"{what} ({described(error)})") from error


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings of libraries: what is wrong with a file shows in its data, or as an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def each_named(entries: Iterator[T], what: str) -> Iterator[T]:
    """The same entries; whatever goes wrong between two of them is an InputError as of `named`."""
    while True:
        with named(what):
            entry = _next(entries)
        if entry is None:
            return
        yield entry


def _next(entries: Iterator[T]) -> T | None:
    with quiet():
        return next(entries, None)
