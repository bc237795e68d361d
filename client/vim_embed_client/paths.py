"""What to say of paths that lead to nothing: one message for all commands."""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path

from vim_embed_client.errors import ConfigurationError

_PATTERN = "*?["


def not_there(path: str | os.PathLike[str]) -> ConfigurationError:
    """The error for a file or folder that is not there, or a pattern that nothing fits."""
    text = os.fspath(path)
    if any(mark in text for mark in _PATTERN):
        return ConfigurationError(f"nothing fits the pattern {text}")
    return ConfigurationError(f"{text} is not there{_why(Path(text))}")


def check_folder_of(output: Path) -> None:
    """Raise ConfigurationError unless the folder that a file is to be written in is there."""
    folder = output.absolute().parent
    if not folder.is_dir():
        raise ConfigurationError(
            f"{output} cannot be written: there is no folder {output.parent}: make it first"
        )


def _why(path: Path) -> str:
    """The folder that is not there either, or the name in it that is nearest."""
    try:
        if not path.parent.is_dir():
            return f": there is no folder {path.parent}"
        found = get_close_matches(path.name, os.listdir(path.parent), 1)
    except OSError:
        return ""
    return f": did you mean {path.with_name(found[0])}?" if found else ""
