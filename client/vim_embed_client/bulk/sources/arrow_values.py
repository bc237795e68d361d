"""Values of a table's column to rows: encoded images, pixels, and fluxes. Knows Arrow's types."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from vim_embed_client.bulk.sources.flux import Stretch, to_rgb
from vim_embed_client.bulk.sources.reader import Entry, Item, Skipped, file_size, pixel_item
from vim_embed_client.errors import InputError
from vim_embed_client.formats import Array


def choose_column(schema: Any, wanted: str | None) -> str:
    """The column that holds images: the one named, else the only one that can.

    Raises InputError where it is not there or there is a choice.
    """
    if wanted is not None:
        if wanted not in schema.names:
            raise InputError(f"there is no column {wanted!r}: it has {', '.join(schema.names)}")
        return wanted
    found = [field.name for field in schema if _holds_images(field.type)]
    if len(found) != 1:
        some = ", ".join(found or schema.names)
        what = "several columns could hold images" if found else "no column seems to hold images"
        raise InputError(f"{what}: choose one with --column ({some})")
    return str(found[0])


def _storage(kind: Any) -> Any:
    return getattr(kind, "storage_type", kind)


def _holds_images(kind: Any) -> bool:
    import pyarrow as pa

    if len(getattr(kind, "shape", ())) == 3:
        return True
    kind = _storage(kind)
    if pa.types.is_struct(kind):
        return {"bytes", "flux"} & {field.name for field in kind} != set()
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or _depth(kind) == 3


def _depth(kind: Any) -> int:
    return 1 + _depth(_storage(kind.value_type)) if hasattr(kind, "value_type") else 0


class Values:
    """Turns a column's values into entries.

    shape: of flat lists, (3, H, W). stretch: for fluxes. folder: where paths in it start.
    """

    def __init__(self, shape: Sequence[int] | None, stretch: Stretch, folder: str = "") -> None:
        self._shape, self._stretch, self._folder = shape, stretch, folder

    def entries(self, column: Any, ids: Sequence[str]) -> Iterator[Entry]:
        """An entry for each value of an Arrow array."""
        for row, row_id in enumerate(ids):
            try:
                yield self._entry(column.slice(row, 1), row_id)
            except InputError as error:
                yield Skipped(id=row_id, reason=error.message)

    def _entry(self, one: Any, row_id: str) -> Entry:
        import pyarrow as pa

        shape = list(getattr(one.type, "shape", ())) or self._shape
        one = getattr(one, "storage", one)
        if one.null_count:
            raise InputError("it is null")
        if pa.types.is_struct(one.type):
            return self._struct(one, row_id)
        if pa.types.is_binary(one.type) or pa.types.is_large_binary(one.type):
            return _encoded(one[0].as_py(), row_id)
        pixels = _pixels(list_values(one))
        if shape is not None:
            if pixels.size != np.prod(shape):
                raise InputError(f"it has {pixels.size} numbers, which are not {tuple(shape)}")
            pixels = pixels.reshape(shape)
        return pixel_item(row_id, pixels)

    def _struct(self, one: Any, row_id: str) -> Entry:
        names = [field.name for field in one.type]
        if "flux" in names:
            return flux_item(row_id, list_values(one.field("flux")), self._stretch)
        value = one[0].as_py()
        if value.get("bytes") is not None:
            return _encoded(value["bytes"], row_id)
        if value.get("path") is None:
            raise InputError(f"it has neither bytes nor a path, but {', '.join(names)}")
        path = os.path.join(self._folder, value["path"])
        return Item(id=row_id, data=path, size=file_size(path))


def flux_item(row_id: str, flux: Array, stretch: Stretch) -> Item:
    """Fluxes as an item that is stretched when it is sent, and then resized."""
    return Item(id=row_id, data=partial(to_rgb, flux, stretch), size=flux.nbytes)


def _encoded(data: bytes, row_id: str) -> Entry:
    if not data:
        raise InputError("it is empty")
    return Item(id=row_id, data=data, size=len(data))


def _pixels(array: Array) -> Array:
    """Integers as uint8 where they are that."""
    if array.dtype.kind in "iu" and array.dtype != np.uint8:
        if array.size and not (array.min() >= 0 and array.max() <= 255):
            raise InputError("its whole numbers are not all within 0 to 255")
        return array.astype(np.uint8)
    return array


def list_values(one: Any) -> Array:
    """The nested lists of an Arrow array of one value as an array. Raises InputError."""
    import pyarrow.compute as pc

    one = getattr(one, "storage", one)
    shape: list[int] = []
    while hasattr(one.type, "value_type"):
        lengths = pc.unique(pc.list_value_length(one)).to_pylist()
        if len(lengths) != 1 or not lengths[0]:
            raise InputError("its lists are empty or not all of one length")
        shape.append(lengths[0])
        one = one.flatten()
        one = getattr(one, "storage", one)
    if one.null_count:
        raise InputError(f"{one.null_count} of its numbers are null")
    array: Array = one.to_numpy(zero_copy_only=False)
    return array.reshape(shape)
