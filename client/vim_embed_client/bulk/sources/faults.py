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

from vim_embed_client.errors import InputError, VimEmbedError

T = TypeVar("T")

_LONGEST = 300


def described(error: BaseException) -> str:
    """An exception in one printable line: its kind, and its text where it has any."""
    text = " ".join(str(error).split())
    text = "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )
    kind = type(error).__name__
    if not text:
        return kind
    return f"{kind}: {text[:_LONGEST]}{'…' if len(text) > _LONGEST else ''}"


@contextmanager
def named(what: str) -> Iterator[None]:
    """Raise InputError("`what` (the error)") for any exception that is not the client's own."""
    try:
        yield
    except VimEmbedError:
        raise
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
