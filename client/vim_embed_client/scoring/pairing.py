"""Brings two embedding files to the same sources in the same order, and leaves out bad rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vim_embed_client.errors import InputError
from vim_embed_client.scoring.embedding_files import EmbeddingFile
from vim_embed_client.scoring.ids import below_common_folder, refuse_repeats, without_endings
from vim_embed_client.scoring.matching import by_position, by_table, unmatched
from vim_embed_client.scoring.pairing_ways import OPTIONS, ways

_PER_BLOCK = 2**24
_LEAST = 2


class Pairing(NamedTuple):
    """Two files with the same sources in the same order, and how they were brought together."""

    first: EmbeddingFile
    second: EmbeddingFile
    how: str


def pair(
    first: EmbeddingFile,
    second: EmbeddingFile,
    *,
    by_row: bool = False,
    common: bool = False,
    match: float | None = None,
    pairs: str | None = None,
    offered: tuple[str, ...] = OPTIONS,
) -> Pairing:
    """The files with the rows of `second` in the order of `first`.

    Where no id is in both files, they are compared below the folder that a file's ids have in
    common, so that `hst/7.png` and `hsc/7.png` are one source; then also without their endings,
    so that `hst/7.fits.gz` and `hsc/7.png` are. Without ids on both sides, or with `by_row`, rows
    go by position. common: keep the sources that both have. match: pair the rows whose positions
    on the sky, columns beside the embeddings, are each other's nearest within so many arcseconds.
    pairs: a table of ids of the one and of the other file (see `by_table`). offered: the options
    that a message may name. Raises InputError
    where the files do not hold the same sources, or an id stands for several rows.
    """
    if match is not None or pairs is not None:
        found = by_position(first, second, match) if match else by_table(first, second, pairs or "")
        return Pairing(first.take(found[0]), second.take(found[1]), found[2])
    if by_row or first.ids is None or second.ids is None:
        if len(first) != len(second):
            raise InputError(_different_lengths(first, second, offered))
        return Pairing(first, second, "by row")
    how, mine, theirs = _names(first.ids, second.ids)
    places = {name: row for row, name in enumerate(theirs)}
    shared = [row for row, name in enumerate(mine) if name in places]
    for file, names in ((first, mine), (second, theirs)):
        if len(set(names)) != len(names):
            others = ways(first, second, shared=0, offered=offered)
            refuse_repeats(names, file.label, or_else=f", or {others}")
    if mine == theirs:
        return Pairing(first, second, how)
    whole = len(shared) == len(mine) == len(theirs)
    if len(shared) < _LEAST or not (common or whole):
        raise InputError(
            f"{first.label} and {second.label} name different sources "
            f"({_examples(mine, theirs)}): "
            f"{ways(first, second, shared=len(shared), offered=offered)}"
        )
    if not whole:
        how += f"; {unmatched(first, second, len(shared))}"
    return Pairing(first.take(shared), second.take([places[mine[row]] for row in shared]), how)


def pair_all(
    files: Sequence[EmbeddingFile],
    *,
    by_row: bool = False,
    common: bool = False,
    match: float | None = None,
    pairs: str | None = None,
) -> list[EmbeddingFile]:
    """Any number of files with the same sources in the order of the first; see `pair`."""
    paired = [files[0]]
    for file in files[1:]:
        first, other, _ = pair(
            paired[0], file, by_row=by_row, common=common, match=match, pairs=pairs
        )
        kept = np.isin(paired[0].numbers, first.numbers)
        paired = [one if kept.all() else one.take(kept) for one in paired]
        paired.append(other)
    return paired


def _names(first: list[str], second: list[str]) -> tuple[str, list[str], list[str]]:
    """How the ids are compared, and what of each counts: the first way that finds a common one."""
    ways: tuple[tuple[str, Callable[[list[str]], list[str]]], ...] = (
        ("by id", list),
        ("by id, below the folder that a file's ids have in common", below_common_folder),
        ("by id, without folder and ending", without_endings),
    )
    for how, shorten in ways:
        mine, theirs = shorten(first), shorten(second)
        if set(mine) & set(theirs):
            return how, mine, theirs
    return ways[1][0], below_common_folder(first), below_common_folder(second)


def usable_rows(*files: EmbeddingFile, drop: bool = False) -> tuple[EmbeddingFile, ...]:
    """The files without the rows that have no direction in one of them: zero or not finite.

    The files are paired already. Raises InputError, naming the first such row, unless `drop`.
    """
    good = [_usable(file) for file in files]
    every = np.logical_and.reduce(good)
    if every.all():
        return files
    if not drop:
        file, mask = next((f, m) for f, m in zip(files, good, strict=True) if not m.all())
        row = int(np.flatnonzero(~mask)[0])
        fault = "zero" if np.isfinite(file.embeddings[row]).all() else "null or not finite"
        raise InputError(
            f"{file.label}: {int((~mask).sum())} of {len(mask)} rows are zero or not finite, the "
            f"first is {file.name(row)} ({fault}), so they have no neighbours: embed them again, "
            "or leave them out with --drop-invalid"
        )
    if every.sum() < 2:
        raise InputError(f"{int(every.sum())} usable rows are left: embed the files again")
    return tuple(file.take(every) for file in files)


def _usable(file: EmbeddingFile) -> NDArray[np.bool_]:
    z = file.embeddings
    step = max(1, _PER_BLOCK // z.shape[1])
    blocks = (z[start : start + step] for start in range(0, len(z), step))
    return np.concatenate([np.isfinite(b).all(axis=1) & (b != 0).any(axis=1) for b in blocks])


def _different_lengths(
    first: EmbeddingFile, second: EmbeddingFile, offered: tuple[str, ...]
) -> str:
    shared = 0
    if first.ids is not None and second.ids is not None:
        _, mine, theirs = _names(first.ids, second.ids)
        shared = len(set(mine) & set(theirs))
    fix = ways(first, second, shared=shared, offered=offered)
    if shared == len(first) or shared == len(second):
        fix = f"leave out --by-row to pair them by their ids; {fix}"
    return (
        f"{first.label} and {second.label} have {len(first):,} and {len(second):,} rows, and row i "
        f"of both must be the same source: {fix}"
    )


def _examples(mine: Sequence[str], theirs: Sequence[str]) -> str:
    only_mine, only_theirs = set(mine) - set(theirs), set(theirs) - set(mine)
    examples = ", ".join(sorted(only_mine)[:2] + sorted(only_theirs)[:2])
    return (
        f"{len(only_mine):,} only in the first, {len(only_theirs):,} only in the second: {examples}"
    )
