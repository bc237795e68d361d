"""Values of a table's column to rows: encoded images, pixels, and fluxes. Knows Arrow's types."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vim_embed_client.bulk.sources.faults import described, named
from vim_embed_client.bulk.sources.layout import Layout, array_entry, flux_item, layout_of
from vim_embed_client.bulk.sources.options import FLUX_OPTIONS, ReadOptions
from vim_embed_client.bulk.sources.reader import Entry, Item, Skipped, encoded_item, file_size
from vim_embed_client.errors import InputError, VimEmbedError
from vim_embed_client.formats import Array
from vim_embed_pixels.spelling import absent

_FAR = ("hf://", "http://", "https://", "s3://", "gs://", "gcs://")


def choose_column(schema: Any, wanted: str | None) -> str:
    """The column that holds images: the one named, else the only one that can.

    Raises InputError where it is not there or there is a choice.
    """
    if wanted is not None:
        if wanted not in schema.names:
            raise InputError(f"it has {absent([wanted], schema.names)}")
        return wanted
    found = [field.name for field in schema if _holds_images(field.type)]
    if len(found) != 1:
        some = ", ".join(found or schema.names)
        what = "several columns could hold images" if found else "no column seems to hold images"
        raise InputError(f"{what}: choose one with --column ({some})")
    return str(found[0])


def _plain(kind: Any) -> Any:
    """A type without what only says how its values are stored."""
    import pyarrow as pa

    while True:
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        elif pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
            kind = kind.value_type
        else:
            return kind


def plain(values: Any) -> Any:
    """An Arrow array without what only says how its values are stored."""
    import pyarrow as pa
    import pyarrow.compute as pc

    while True:
        if isinstance(values.type, pa.BaseExtensionType):
            values = values.storage
        elif pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        elif pa.types.is_run_end_encoded(values.type):
            values = pc.run_end_decode(values)
        else:
            return values


def _is_binary(kind: Any) -> bool:
    import pyarrow as pa

    kinds = pa.types
    return bool(kinds.is_binary(kind) or kinds.is_large_binary(kind) or kinds.is_binary_view(kind))


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    kinds = pa.types
    return bool(kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_string_view(kind))


def is_list(kind: Any) -> bool:
    import pyarrow as pa

    kinds = pa.types
    return bool(
        kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind)
        or kinds.is_list_view(kind) or kinds.is_large_list_view(kind)
    )  # fmt: skip


def _holds_images(kind: Any) -> bool:
    if len(getattr(kind, "shape", ())) == 3:
        return True
    return _is_image(_plain(kind)) or are_lists_of_images(kind) or _depth(kind) == 3


def _is_image(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return {"bytes", "flux"} & {field.name for field in kind} != set()
    return _is_binary(kind)


def are_lists_of_images(kind: Any) -> bool:
    """Whether each value is a list of images, so that a table's row gives several."""
    kind = _plain(kind)
    return is_list(kind) and _is_image(_plain(kind.value_type))


def _depth(kind: Any) -> int:
    kind = _plain(kind)
    return 1 + _depth(kind.value_type) if is_list(kind) else 0


class Values:
    """Turns a column's values into entries.

    folder: where paths in it start. keep: columns whose values go beside the rows.
    """

    def __init__(self, options: ReadOptions, folder: str = "") -> None:
        # In a table each row is one galaxy: three axes of one are bands, rows and columns.
        self._options, self._folder = replace(options, stack=False), folder
        self.keep = options.keep

    def entries(self, column: Any, ids: Sequence[str | Skipped]) -> Iterator[Entry]:
        """An entry for each value of an Arrow array, or several for lists of images."""
        for row, row_id in enumerate(ids):
            if isinstance(row_id, Skipped):
                yield row_id
                continue
            try:
                with named("cannot be read"):
                    found = self._of_one(column.slice(row, 1), row_id)
            except InputError as error:
                found = [Skipped(id=row_id, reason=error.message)]
            yield from found

    def effective(self, column: Any) -> frozenset[str]:
        """The options that have an effect on the first value of an Arrow array that has one."""
        kind = _plain(column.type)
        if _is_image(kind) or are_lists_of_images(kind) or _is_text(kind):
            is_flux = "flux" in [field.name for field in kind] if hasattr(kind, "fields") else False
            return frozenset({"--crop"}) | (FLUX_OPTIONS | {"--flip"} if is_flux else frozenset())
        flat = {"--shape"} if _depth(kind) == 1 else set()
        for row in range(len(column)):
            try:
                array = self._array(column.slice(row, 1))
                return _array_options(array, self._options) | flat
            except InputError:
                continue
        return frozenset(flat)

    def _of_one(self, one: Any, row_id: str) -> list[Entry]:
        if not are_lists_of_images(one.type):
            return [self._entry(one, row_id)]
        one = plain(one)
        if one.null_count:
            raise InputError("it is null")
        images = one.flatten()
        if not len(images):
            raise InputError("it holds no image")
        several = len(images) > 1
        ids = [f"{row_id}/{place}" if several else row_id for place in range(len(images))]
        return list(self.entries(images, ids))

    def _entry(self, one: Any, row_id: str) -> Entry:
        import pyarrow as pa

        kind = _plain(one.type)
        if plain(one).null_count:
            raise InputError("it is null")
        if pa.types.is_struct(kind):
            return self._struct(plain(one), row_id)
        if _is_binary(kind):
            return self._encoded(plain(one)[0].as_py(), row_id)
        if _is_text(kind):
            return self._of_path(str(plain(one)[0].as_py()), row_id)
        array = self._array(one)
        return array_entry(row_id, array, _layout(array, self._options), self._options)

    def _array(self, one: Any) -> Array:
        shape = list(getattr(one.type, "shape", ()))
        array = list_values(plain(one))
        if not shape and array.ndim == 1:
            shape = list(self._options.shape or ())
        if shape:
            if array.size != np.prod(shape):
                raise InputError(f"it has {array.size} numbers, which are not {tuple(shape)}")
            array = array.reshape(shape)
        return array if self._options.fluxes else _pixels(array)

    def _struct(self, one: Any, row_id: str) -> Entry:
        names = [field.name for field in one.type]
        if "flux" in names:
            flux = list_values(one.field("flux"))
            crop, flip = self._options.crop, self._options.flip
            told = one.field("band")[0].as_py() if "band" in names else None
            with named("it cannot be shown"):
                stretch = self._options.stretch.by_number(told if isinstance(told, list) else ())
            return flux_item(row_id, flux, stretch, crop=crop, flip=flip)
        value = one[0].as_py()
        if value.get("bytes") is not None:
            return self._encoded(value["bytes"], row_id)
        if value.get("path") is None:
            raise InputError(f"it has neither bytes nor a path, but {', '.join(names)}")
        return self._of_path(value["path"], row_id)

    def _of_path(self, path: str, row_id: str) -> Entry:
        if "://" in path:
            return self._encoded(_fetched(path), row_id)
        path = os.path.join(self._folder, path)
        return self._item(row_id, path, file_size(path))

    def _encoded(self, data: bytes, row_id: str) -> Item:
        if not data:
            raise InputError("it is empty")
        return self._item(row_id, data, len(data))

    def _item(self, row_id: str, data: str | bytes, size: int) -> Item:
        return encoded_item(row_id, data, size, self._options.crop)


def _layout(array: Array, options: ReadOptions) -> Layout:
    return layout_of(array.shape, array.dtype, options, are_bands=True)


def _array_options(array: Array, options: ReadOptions) -> frozenset[str]:
    return _layout(array, options).options - {"--stack"}


def _fetched(url: str) -> bytes:
    """The bytes behind an address as Hugging Face writes them, such as zip://a.png::/b.zip."""
    try:
        import fsspec

        with fsspec.open(url, "rb") as file:
            data: bytes = file.read()
    except (FileNotFoundError, ImportError) as error:
        raise InputError(f"{url} cannot be read ({described(error)})") from None
    except Exception as error:
        # What the network withheld is not to be taken for unreadable.
        fault = VimEmbedError if url.startswith(_FAR) else InputError
        raise fault(f"{url} cannot be read ({described(error)})") from None
    return data


def _pixels(array: Array) -> Array:
    """Integers as uint8 where they are that."""
    if array.dtype.kind in "iu" and array.dtype != np.uint8:
        if array.size and not (array.min() >= 0 and array.max() <= 255):
            raise InputError(
                "its whole numbers are not all within 0 to 255: give --percentiles 1,99 if they "
                "are fluxes"
            )
        return array.astype(np.uint8)
    return array


def list_values(one: Any) -> Array:
    """The nested lists of an Arrow array of one value as an array. Raises InputError."""
    import pyarrow.compute as pc

    one = plain(one)
    shape: list[int] = []
    while is_list(one.type):
        lengths = pc.unique(pc.list_value_length(one)).to_pylist()
        if len(lengths) != 1 or not lengths[0]:
            raise InputError("its lists are empty or not all of one length")
        shape.append(lengths[0])
        one = plain(one.flatten())
    if one.null_count:
        raise InputError(f"{one.null_count} of its numbers are null")
    array: Array = one.to_numpy(zero_copy_only=False)
    return array.reshape(shape)
