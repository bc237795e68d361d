"""Which options would pair the rows of two files that do not fit, by what the files hold."""

from __future__ import annotations

from collections.abc import Iterator

from vim_embed_client.errors import VimEmbedError
from vim_embed_client.scoring.embedding_files import EmbeddingFile
from vim_embed_client.scoring.matching import mutual_positions

OPTIONS = ("--common", "--match", "--by-row")

_LEAST = 2
_NEAR = 1.0  # arcsec
_ANEW = (
    "embed them again with --id-column, of ids that both have in common, or with --keep ra,dec, "
    "so that they can be paired by their positions"
)


def ways(
    first: EmbeddingFile, second: EmbeddingFile, *, shared: int, offered: tuple[str, ...] = OPTIONS
) -> str:
    """What to do, as the end of a message. shared: ids that both files have.

    offered: the options of the command that asks.
    """
    found = [
        text for option, text in _possible(first, second, shared) if option in offered
    ] or [_ANEW]  # fmt: skip
    return "; ".join([*found[:-1], f"or {found[-1]}"] if len(found) > 1 else found)


def _possible(
    first: EmbeddingFile, second: EmbeddingFile, shared: int
) -> Iterator[tuple[str, str]]:
    if shared >= _LEAST:
        yield "--common", f"--common keeps the {shared:,} sources that both have"
    near = _near(first, second)
    if near >= _LEAST:
        yield (
            "--match",
            f"--match {_NEAR:g}arcsec pairs {near:,} rows by their positions on the sky",
        )
    if len(first) == len(second):
        yield (
            "--by-row",
            "--by-row takes row i of both for the same source, which is right only if both files "
            "list the same sources in the same order",
        )


def _near(first: EmbeddingFile, second: EmbeddingFile) -> int:
    """How many rows `--match` would pair; 0 also where a file has no positions."""
    if not (first.path.is_file() and second.path.is_file()):
        return 0
    try:
        return len(mutual_positions(first, second, _NEAR).first)
    except VimEmbedError:
        return 0
