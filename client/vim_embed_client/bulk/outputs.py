"""Writes embeddings to .npy, .npz, .parquet or .safetensors: the whole file or none.

A file has an array for each of the rows' arrays (row_shape.py): `embedding`, or one a layer.

An output may have files beside it: its sidecar (ids and provenance of an .npy) and the list of
what was skipped. They are put in place in an order in which, wherever a process is killed, no file
lies beside embeddings that it does not belong to.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import chain, repeat
from pathlib import Path
from typing import IO, Any

import numpy as np

from vim_embed_client.bulk.durable_files import sync_folder
from vim_embed_client.bulk.row_columns import (
    ColumnParts,
    Columns,
    column_kinds,
    columns_json,
    whole_column,
)
from vim_embed_client.bulk.row_shape import NamedShape, RowShape, is_layers, row_size
from vim_embed_client.bulk.sources.reader import Skipped
from vim_embed_client.errors import ConfigurationError, InputError
from vim_embed_client.formats import Array, npy_header, safetensors_header
from vim_embed_client.results import Provenance

# Readers of safetensors refuse headers beyond 100 MB; longer lists of ids go beside the file.
_MAX_HEADER_IDS = 32 << 20
_NAMED_SKIPS = 1000
DIGEST = "array_sha256"  # of a sidecar: of the array that it belongs to
METADATA = "metadata"  # the member of an .npz that holds them, as JSON
NO_SURVEY = "images"  # the mode of rows whose survey nobody named
# Rows of a row group of Parquet, whatever the parts of the run were: its bytes follow from the
# rows alone.
_GROUP_ROWS, _GROUP_BYTES = 4096, 32 << 20
_CHUNK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What to write: `rows` rows of `shape`, in blocks of ids and of arrays (n, …) by name.

    blocks, columns and skipped give the same each time that they are called. array: the blocks of
    one of the arrays, where this can be had without reading the others. columns: values beside
    the arrays, for each block. mode: what stands behind the
    layers in the names of Parquet columns (platonic-universe's `{layer}_{mode}`). options: with
    which rows were read and embedded. about: what else the metadata says, by name.
    """

    rows: int
    shape: RowShape
    dtype: np.dtype[Any]
    provenance: Provenance
    blocks: Callable[[], Iterator[tuple[list[str], Mapping[str, Array]]]]
    array: Callable[[str], Iterator[Array]] | None = None
    columns: ColumnParts = tuple
    mode: str = ""
    skipped: Callable[[], Iterable[Skipped]] = tuple
    options: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def first_left_out(self) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
        """What was left out at fault, as far as it goes into the file itself; and likewise sources
        that were asked for and passed over.
        """
        skipped: list[dict[str, str]] = []
        passed_over: list[dict[str, str]] = []
        for one in self.skipped():  # once: it reads the finished parts
            named = skipped if one.fault else passed_over
            if (one.fault or one.asked_for) and len(named) < _NAMED_SKIPS:
                named.append({"id": one.id, "reason": one.reason})
        return skipped, passed_over

    def first_skipped(self) -> list[dict[str, str]]:
        """Of what was left out, the rows at fault."""
        return self.first_left_out[0]

    def metadata(self) -> dict[str, Any]:
        """Everything but the embeddings and their ids."""
        layers = {"layers": [one.name for one in self.shape]} if is_layers(self.shape) else {}
        return {
            "provenance": asdict(self.provenance),
            **layers,
            "options": self.options,
            "skipped": self.first_skipped(),
            "passed_over": self.first_left_out[1],
            **self.about,
        }

    def blocks_of(self, name: str) -> Iterator[Array]:
        """One of the arrays, (n, …) for each block."""
        if self.array is not None:
            return self.array(name)
        return (arrays[name] for _, arrays in self.blocks())


def check_holds(path: Path, shape: RowShape, mode: str = "", keep: Sequence[str] = ()) -> None:
    """Raise ConfigurationError for rows that the output's format has no place for.

    mode: as of `Contents`. keep: names of the columns that are kept beside the embeddings.
    """
    layers = {layer_column(one.name, mode) for one in shape} if is_layers(shape) else set()
    if path.suffix == ".parquet" and (taken := [name for name in keep if name in layers]):
        raise ConfigurationError(
            f"{path} has a layer {taken[0]!r}, so that no column of this name can be kept: leave "
            "it out of --keep, rename it in the catalogue, or give another --mode"
        )
    widths = sorted({one.shape for one in shape})
    if path.suffix == ".npy" and len(widths) > 1:
        told = ", ".join("×".join(map(str, width)) for width in widths)
        raise ConfigurationError(
            f"{path} is one array, and the layers have {len(widths)} widths ({told}): write .npz, "
            ".parquet or .safetensors"
        )


def write_output(path: Path, contents: Contents, *, scratch: Path | None = None) -> None:
    """Write in the format of the path's ending; an older file is replaced at the end.

    .npy: the array, of layers (rows, layers, D); all else in `<path>.json`, with the sha256 of
    the .npy.
    .npz: the arrays, `ids`, and `metadata`, which is the rest as JSON.
    .parquet: columns `id` and `embedding`, or those of the layers and `id`, then those kept beside
    them; the rest as JSON in the schema's metadata.
    .safetensors: the tensors; the rest as JSON in the metadata. Ids and columns beyond 32 MB go to
    `<path>.json`, as with .npy.
    The metadata names the first 1,000 rows that were skipped, and the first 1,000 sources that were
    asked for and passed over; where there are more, everything that was left out is in
    `<path>.skipped.jsonl`. scratch: a folder of the same file system for unfinished files. Raises
    OSError, and then the older files are as they were.
    """
    files = _Replacing(path, scratch or path.parent)
    try:
        needs_sidecar = _WRITERS[path.suffix](files, contents)
        if needs_sidecar:
            digest = file_digest(files.unfinished(path))
            with files.open(sidecar(path)) as file:
                _write_sidecar(file, contents, digest)
        if any(len(named) == _NAMED_SKIPS for named in contents.first_left_out):
            with files.open(skipped_list(path)) as file:
                for one in contents.skipped():
                    file.write(skipped_line(one))
        files.put_in_place(stale=[skipped_list(path), *_old_sidecar(path)])
    finally:
        files.remove_unfinished()


def skipped_line(one: Skipped) -> bytes:
    """A line of the list of all that was left out."""
    told = {"id": one.id, "reason": one.reason, "fault": one.fault, "asked_for": one.asked_for}
    return json.dumps(told).encode() + b"\n"


def sidecar(path: Path) -> Path:
    """Where the ids and provenance of an .npy file are."""
    return path.with_name(path.name + ".json")


def skipped_list(path: Path) -> Path:
    """Where all is named that was left out, if it is too much for the metadata."""
    return path.with_name(path.name + ".skipped.jsonl")


def read_sidecar(path: Path) -> dict[str, Any]:
    """What is beside an array of embeddings; empty where nothing is.

    Raises InputError where it describes another array, or was lost to a run that was stopped.
    """
    beside = sidecar(path)
    if not beside.exists():
        if path.with_name(path.name + ".parts").exists():
            raise InputError(
                f"{path} is being written, or a run was stopped while it was put in place: give "
                "the command of that run again to finish it"
            )
        return {}
    about: dict[str, Any] = json.loads(beside.read_text())
    if DIGEST in about and about[DIGEST] != file_digest(path):
        raise InputError(
            f"{beside} describes other embeddings than those in {path}, which was written later "
            "by something else: embed again, or remove it to use the array without ids"
        )
    return about


def file_digest(path: Path) -> str:
    """The sha256 of a file, as `sha256sum` prints it."""
    hashed = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_CHUNK):
            hashed.update(block)
    return hashed.hexdigest()


def _old_sidecar(path: Path) -> list[Path]:
    """What an earlier run wrote there; beside a .parquet such a file is somebody else's."""
    return [] if path.suffix == ".parquet" else [sidecar(path)]


class _Replacing:
    """An output and the files beside it, which take the place of older ones together."""

    def __init__(self, path: Path, folder: Path) -> None:
        self.path, self._folder = path, folder
        self._written: list[Path] = []

    def unfinished(self, path: Path) -> Path:
        """Where a file is until it is put in place."""
        ending = path.name.removeprefix(self.path.name) or self.path.suffix
        if self._folder != path.parent:
            return self._folder / f"joined{ending}"
        return self._folder / f".{self.path.name}{ending}.{os.getpid()}.tmp"

    def open(self, path: Path) -> IO[bytes]:
        self._written.append(path)
        return self.unfinished(path).open("wb")

    def put_in_place(self, stale: Iterable[Path]) -> None:
        """Make what was opened durable, then replace the older files. stale: of these, and gone.

        What is beside the older array goes before that array does, and what is beside the new one
        comes after it.
        """
        for path in self._written:
            with self.unfinished(path).open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(self._folder)
        for path in stale:
            path.unlink(missing_ok=True)
        sync_folder(self.path.parent)
        for path in sorted(self._written, key=lambda path: path != self.path):
            os.replace(self.unfinished(path), path)
            sync_folder(self.path.parent)

    def remove_unfinished(self) -> None:
        for path in self._written:
            with suppress(OSError):
                self.unfinished(path).unlink(missing_ok=True)


def _write_sidecar(file: IO[bytes], contents: Contents, digest: str) -> None:
    rest = {DIGEST: digest, **contents.metadata()}
    file.write(b'{\n"ids": [')
    for piece in _ids_json(contents):
        file.write(piece)
    file.write(b'],\n"columns": ')
    for piece in columns_json(contents.columns):
        file.write(piece)
    file.write(b",\n" + json.dumps(rest, indent=1).removeprefix("{").encode())


def _ids_json(contents: Contents) -> Iterator[bytes]:
    """The ids as the inside of a JSON list."""
    comma = ""
    for ids, _ in contents.blocks():
        yield (comma + json.dumps(ids)[1:-1]).encode()
        comma = ", "


def _write_npy(files: _Replacing, contents: Contents) -> bool:
    first, *others = contents.shape
    layers = (len(contents.shape),) if others else ()
    with files.open(files.path) as file:
        file.write(npy_header((contents.rows, *layers, *first.shape), contents.dtype))
        for _, arrays in contents.blocks():
            block = np.stack(list(arrays.values()), axis=1) if others else arrays[first.name]
            file.write(_bytes(block, contents.dtype))
    return True


def _bytes(block: Array, dtype: np.dtype[Any]) -> memoryview:
    return np.ascontiguousarray(block, dtype).reshape(-1).view(np.uint8).data


def _write_npz(files: _Replacing, contents: Contents) -> bool:
    longest = max((len(one) for ids, _ in contents.blocks() for one in ids), default=0)
    texts = np.dtype(f"<U{max(1, longest)}")
    ids = (np.array(some, texts) for some, _ in contents.blocks())
    columns = json.loads(b"".join(columns_json(contents.columns)))
    about = np.array(json.dumps(contents.metadata() | {"columns": columns}))
    with files.open(files.path) as file, zipfile.ZipFile(file, "w") as archive:
        for one in contents.shape:
            shape = (contents.rows, *one.shape)
            _write_member(archive, one.name, shape, contents.dtype, contents.blocks_of(one.name))
        _write_member(archive, "ids", (contents.rows,), texts, ids)
        _write_member(archive, METADATA, (), about.dtype, iter([about]))
    return False


def _write_member(
    archive: zipfile.ZipFile,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    blocks: Iterator[Array],
) -> None:
    entry = zipfile.ZipInfo(f"{name}.npy")  # of a fixed date, so that the same rows are same bytes
    with archive.open(entry, "w", force_zip64=True) as member:
        member.write(npy_header(shape, dtype))
        for block in blocks:
            member.write(_bytes(block, dtype))


def _write_parquet(files: _Replacing, contents: Contents) -> bool:
    pa, parquet = import_pyarrow()
    told = contents.metadata()
    if is_layers(contents.shape):
        told["mode"] = contents.mode
    about = {f"vim_embed.{name}": json.dumps(value) for name, value in told.items()}
    number = pa.from_numpy_dtype(contents.dtype)
    columns = {_column(one, contents): _lists_of(pa, number, one.shape) for one in contents.shape}
    # platonic-universe takes its models' names from the first column.
    first, last = (
        ({}, {"id": pa.string()}) if is_layers(contents.shape) else ({"id": pa.string()}, {})
    )
    kinds = column_kinds(contents.columns)
    kept = {name: pa.type_for_alias(kind) for name, kind in kinds.items()}
    schema = pa.schema({**first, **columns, **last, **kept}, metadata=about)

    def table(ids: list[str], arrays: Mapping[str, Array], beside: Columns) -> Any:
        found = {_column(one, contents): _as_lists(pa, arrays[one.name]) for one in contents.shape}
        for name, kind in kinds.items():
            found[name] = pa.array(whole_column(beside, name, kind, len(ids)), kept[name])
        return (
            pa.table({"id": pa.array(ids, pa.string()), **found}).select(schema.names).cast(schema)
        )

    row_bytes = row_size(contents.shape) * contents.dtype.itemsize
    rows = max(1, min(_GROUP_ROWS, _GROUP_BYTES // max(1, row_bytes)))
    texts = ["id", *(name for name, kind in kinds.items() if kind == "string")]
    beside = (values for _, values in contents.columns()) if kinds else repeat({})
    tables = (
        table(ids, arrays, values)
        for (ids, arrays), values in zip(contents.blocks(), beside, strict=False)
    )
    with (
        files.open(files.path) as file,
        parquet.ParquetWriter(file, schema, use_dictionary=texts) as writer,
    ):
        for group in _regrouped(pa, tables, rows):
            writer.write_table(group)
    return False


def layer_column(name: str, mode: str) -> str:
    """What the column of a layer is called, as platonic-universe calls it."""
    return f"{name}_{mode}" if mode else name


def _column(one: NamedShape, contents: Contents) -> str:
    return layer_column(one.name, contents.mode) if is_layers(contents.shape) else one.name


def _lists_of(pa: Any, kind: Any, shape: tuple[int, ...]) -> Any:
    """Lists of fixed size, of such lists where a row has several axes."""
    for size in reversed(shape):
        kind = pa.list_(kind, size)
    return kind


def _as_lists(pa: Any, block: Array) -> Any:
    """(n, …) as n lists."""
    found = pa.array(np.ascontiguousarray(block).reshape(-1))
    for size in reversed(block.shape[1:]):
        found = pa.FixedSizeListArray.from_arrays(found, size)
    return found


def _regrouped(pa: Any, tables: Iterator[Any], rows: int) -> Iterator[Any]:
    """The same rows in tables of `rows`, the last of fewer."""
    held: list[Any] = []
    count = 0
    for table in tables:
        held.append(table)
        count += len(table)
        while count >= rows:
            joined = pa.concat_tables(held)
            yield joined.slice(0, rows).combine_chunks()
            held, count = [joined.slice(rows)], count - rows
    if count:
        yield pa.concat_tables(held).combine_chunks()


def import_pyarrow() -> tuple[Any, Any]:
    """pyarrow and pyarrow.parquet. Raises ConfigurationError where they are not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise ConfigurationError(
            'writing .parquet needs pyarrow: pip install "vim-embed[parquet]"'
        ) from None
    return pyarrow, pyarrow.parquet


def _write_safetensors(files: _Replacing, contents: Contents) -> bool:
    metadata = contents.metadata()
    about = {name: _text(value) for name, value in metadata.pop("provenance").items()}
    about |= {name: json.dumps(value) for name, value in metadata.items()}
    size = sum(len(piece) for piece in chain(_ids_json(contents), columns_json(contents.columns)))
    if size <= _MAX_HEADER_IDS:
        about["ids"] = "[" + b"".join(_ids_json(contents)).decode() + "]"
        about["columns"] = b"".join(columns_json(contents.columns)).decode()
    tensors = {one.name: (contents.dtype, (contents.rows, *one.shape)) for one in contents.shape}
    with files.open(files.path) as file:
        file.write(safetensors_header(tensors, about))
        for one in contents.shape:
            for block in contents.blocks_of(one.name):
                file.write(_bytes(block, contents.dtype))
    return size > _MAX_HEADER_IDS


def _text(value: str | bool) -> str:
    return value if isinstance(value, str) else str(value).lower()


_WRITERS: dict[str, Callable[[_Replacing, Contents], bool]] = {
    ".npy": _write_npy,
    ".npz": _write_npz,
    ".parquet": _write_parquet,
    ".safetensors": _write_safetensors,
}
ENDINGS = tuple(_WRITERS)
