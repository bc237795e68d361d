"""Brings two embedding files together by their positions on the sky, or by a table of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vim_embed_client.errors import ConfigurationError, InputError
from vim_embed_client.formats import Array
from vim_embed_client.scoring.embedding_files import EmbeddingFile
from vim_embed_client.scoring.ids import id_texts, refuse_repeats, spellings
from vim_embed_client.scoring.kept_columns import kept_table
from vim_embed_client.sky.matching import Matches, mutual_matches
from vim_embed_client.sky.positions import read_positions
from vim_embed_client.sky.tables import Table, read_table, split_table_name

_LEAST = 2


def by_position(
    first: EmbeddingFile, second: EmbeddingFile, radius: float
) -> tuple[Array, Array, str]:
    """Rows of the one and of the other that are one source, and how they were found.

    radius: arcseconds. Raises ConfigurationError where a file has no positions, InputError where
    fewer than two match.
    """
    found = mutual_positions(first, second, radius)
    if len(found.first) < _LEAST:
        raise InputError(
            f"{len(found.first)} sources of {first.label} and {second.label} lie within "
            f"{radius:g} arcsec of each other: are both of one field? A wider --match takes more"
        )
    return found.first, found.second, _told(first, second, found, radius)


def mutual_positions(first: EmbeddingFile, second: EmbeddingFile, radius: float) -> Matches:
    """Rows of either that are each other's nearest. Raises ConfigurationError without positions."""
    return mutual_matches(_positions(first), _positions(second), radius)


def row_matches(file: EmbeddingFile, table: Table, radius: float) -> Array:
    """(n,) row of a catalogue for each row of a file, -1 where none lies within `radius`."""
    matched = mutual_matches(_positions(file), read_positions(table), radius)
    if not len(matched.first):
        raise InputError(
            f"no source of {file.label} lies within {radius:g} arcsec of one of {table.path}"
        )
    found = np.full(len(file), -1)
    found[matched.first] = matched.second
    return found


def by_table(
    first: EmbeddingFile, second: EmbeddingFile, argument: str
) -> tuple[Array, Array, str]:
    """Rows that a table pairs, in the order of the first file; see `by_position`.

    argument: FILE, whose first two columns are ids of the one and of the other file, or
    FILE:ONE,TWO, which names them.
    """
    named = split_table_name(argument)
    if named is None:
        raise ConfigurationError(f"{argument} is no table of pairs")
    table = read_table(named.path, named.part)
    names = named.column.split(",") if named.column else table.names[:2]
    if len(names) != 2:
        raise ConfigurationError(f"{argument} needs two columns: ids of the one and of the other")
    table.require(names)
    columns = [
        id_texts((None if v == "" else v for v in table[name]), table.exact(name)) for name in names
    ]
    pairs = [pair for pair in zip(*columns, strict=True) if None not in pair]
    places = []
    for file, name, side in zip((first, second), names, zip(*pairs, strict=True), strict=True):
        refuse_repeats(side, f"{argument}, column {name}", or_else="")
        places.append(_places(file, side, argument))
    rows = [(mine, theirs) for mine, theirs in zip(*places, strict=True) if min(mine, theirs) >= 0]
    if len(rows) < _LEAST:
        raise InputError(f"{argument} pairs {len(rows)} rows of {first.label} and {second.label}")
    mine, theirs = np.array(sorted(rows)).T
    told = f"by {len(rows):,} of {len(pairs):,} pairs of {argument}; " + unmatched(
        first, second, len(rows)
    )
    return mine, theirs, told


def unmatched(first: EmbeddingFile, second: EmbeddingFile, pairs: int) -> str:
    """How many rows of either are left without a partner."""
    return (
        f"{len(first) - pairs:,} of {first.label} and {len(second) - pairs:,} of {second.label} "
        "have no partner"
    )


def _told(first: EmbeddingFile, second: EmbeddingFile, found: Matches, radius: float) -> str:
    median = float(np.median(found.separations))
    crowded = f", {found.ambiguous:,} of them with another neighbour as near as that"
    return (
        f"by position within {radius:g} arcsec: {len(found.first):,} pairs, {median:.2g} arcsec "
        f"apart in the median{crowded if found.ambiguous else ''}; "
        f"{unmatched(first, second, len(found.first))}"
    )


def _positions(file: EmbeddingFile) -> tuple[Array, Array]:
    try:
        ra, dec = read_positions(kept_table(file))
    except ConfigurationError:
        raise ConfigurationError(
            f"{file.label} has no positions beside its embeddings: embed with --catalogue, or "
            "with --keep ra,dec"
        ) from None
    return ra[file.numbers], dec[file.numbers]


def _places(file: EmbeddingFile, ids: Sequence[Any], argument: str) -> list[int]:
    """The row of each id, -1 where there is none; ids as they are, else without their endings."""
    if file.ids is None:
        raise InputError(f"{file.label} has no ids that {argument} could name")
    for mine, theirs in zip(spellings(file.ids), spellings(ids), strict=True):
        for wanted in (ids, theirs):
            rows = {name: row for row, name in enumerate(mine)}
            found = [rows.get(name, -1) for name in wanted]
            if max(found, default=-1) >= 0:
                refuse_repeats(mine, file.label)
                return found
    raise InputError(
        f"no id of {argument} is one of {file.label}: {', '.join(ids[:2])} there, "
        f"{', '.join(file.ids[:2])} here"
    )
