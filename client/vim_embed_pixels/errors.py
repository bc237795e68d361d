"""What may be wrong with an image, or with what is asked of it. Both packages have errors of their
own, into which they turn these."""

from __future__ import annotations

import re

_LONGEST = 300


class PixelsError(ValueError):
    """message: what is wrong and what to do about it, in a sentence without its subject."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class UnusableImage(PixelsError):
    """No pixels can be made of this image."""


class UnusableOptions(PixelsError):
    """No image could be shown so: an option is wrong, contradicts another, or needs a package."""


def in_a_query(message: str) -> str:
    """A message that names options of the command line, with the parameters of a query instead:
    `--blank sky` becomes `blank=sky`."""
    with_values = re.sub(r"--([a-z-]+) (sky|[A-Z0-9][^\s;)]*)", r"\1=\2", message)
    return re.sub(r"--([a-z-]+)", lambda found: found[1].replace("-", "_"), with_values)


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
