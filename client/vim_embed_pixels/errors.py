"""What may be wrong with an image, or with what is asked of it. Both packages have errors of their
own, into which they turn these."""

from __future__ import annotations

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
