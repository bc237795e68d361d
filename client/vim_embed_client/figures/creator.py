"""The mark of vim-embed in the figures that it draws, by which it knows them again."""

from __future__ import annotations

from pathlib import Path

_NAME = "vim-embed"
# By format, the field of matplotlib's metadata, and the bytes that it becomes.
_FIELDS = {
    ".png": ("Software", b"tEXtSoftware\0"),
    ".pdf": ("Creator", b"/Creator ("),
    ".svg": ("Creator", b"<dc:title>"),
}


def creator(path: Path) -> dict[str, str]:
    """Metadata for `Figure.savefig`, of the format that the path's ending tells."""
    field, _ = _FIELDS[path.suffix.lower()]
    return {field: _NAME}


def drawn_here(path: Path) -> bool:
    """Whether the file is a figure that vim-embed drew."""
    _, before = _FIELDS[path.suffix.lower()]
    return before + _NAME.encode() in path.read_bytes()
