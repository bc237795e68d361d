"""Values that are written beside the embeddings, such as a catalogue's columns.

They come a part at a time, as lists of texts, numbers, bools and None by the column's name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from vim_embed_client.errors import ConfigurationError

Columns = Mapping[str, list[Any]]
# A part's columns and how many rows it has.
ColumnParts = Callable[[], Iterable[tuple[int, Columns]]]

# Columns of the output itself.
RESERVED = ("id", "embedding")


def check_names(names: Iterable[str]) -> None:
    """Raise ConfigurationError for a column that the output has of itself."""
    if taken := [name for name in names if name in RESERVED]:
        raise ConfigurationError(
            f"the output has a column {taken[0]!r} of its own: keep another one, or rename it in "
            "the catalogue"
        )


def column_kinds(parts: ColumnParts) -> dict[str, str]:
    """The Arrow type of each column (`string`, `bool`, `int64`, `double`), by its values.

    Whole and other numbers together are `double`, any other mixture is `string`, and so are whole
    numbers beyond int64, such as hashes.
    """
    found: dict[str, set[type]] = {}
    for _, columns in parts():
        for name, values in columns.items():
            found.setdefault(name, set()).update(_type(v) for v in values if v is not None)
    return {name: _kind(types) for name, types in found.items()}


def _type(value: Any) -> type:
    beyond = type(value) is int and not -(1 << 63) <= value < 1 << 63
    return str if beyond else type(value)


def _kind(types: set[type]) -> str:
    for kind, of in (("bool", {bool}), ("int64", {int}), ("double", {int, float})):
        if types and types <= of:
            return kind
    return "string"


def whole_column(columns: Columns, name: str, kind: str, rows: int) -> list[Any]:
    """A part's values of a column, of one kind; None for each row where the part lacks it."""
    values = columns.get(name) or [None] * rows
    if kind != "string":
        return values
    return [v if v is None or isinstance(v, str) else json.dumps(v) for v in values]


def columns_json(parts: ColumnParts) -> Iterator[bytes]:
    """All columns as a JSON object of lists, in pieces."""
    kinds = column_kinds(parts)
    yield b"{"
    for place, (name, kind) in enumerate(kinds.items()):
        yield f"{',' if place else ''}\n{json.dumps(name)}: [".encode()
        comma = ""
        for rows, columns in parts():
            yield (comma + json.dumps(whole_column(columns, name, kind, rows))[1:-1]).encode()
            comma = ", "
        yield b"]"
    yield b"}"
