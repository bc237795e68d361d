"""The mark of vim-embed in the figures that it draws, by which it knows them again."""

from __future__ import annotations

from pathlib import Path

from vim_embed_client.bulk.sources.faults import NoSource

_NAME = "vim-embed"
# By format, the field of matplotlib's metadata, and the bytes that it becomes.
_FIELDS = {
    ".png": ("Software", b"tEXtSoftware\0"),
    ".pdf": ("Creator", b"/Creator ("),
    ".svg": ("Creator", b"<dc:title>"),
}
_PNG_HEAD, _HEADERS = b"\x89PNG\r\n\x1a\n", 1024  # the mark comes before the picture


def creator(path: Path) -> dict[str, str]:
    """Metadata for `Figure.savefig`, of the format that the path's ending tells."""
    field, _ = _FIELDS[path.suffix.lower()]
    return {field: _NAME}


def drawn_here(path: Path) -> bool:
    """Whether the file is a figure that vim-embed drew."""
    return _marked(path.read_bytes(), path.suffix.lower())


def check_no_figure(data: bytes) -> None:
    """Raise NoSource for a figure of vim-embed's among encoded images."""
    if data.startswith(_PNG_HEAD) and _marked(data[:_HEADERS], ".png"):
        raise NoSource("a figure that vim-embed drew")


def _marked(data: bytes, ending: str) -> bool:
    return _FIELDS[ending][1] + _NAME.encode() in data
