"""Writes embeddings to .npy, .parquet or .safetensors as they are read: the whole file or none."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from vim_embed_client.bulk.durable_files import sync_folder
from vim_embed_client.bulk.sources.reader import Skipped
from vim_embed_client.errors import ConfigurationError
from vim_embed_client.formats import Array, npy_header, safetensors_header
from vim_embed_client.results import Provenance

# Readers of safetensors refuse headers beyond 100 MB; longer lists of ids go beside the file.
_MAX_HEADER_IDS = 32 << 20
_NAMED_SKIPS = 1000


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What to write: `rows` embeddings of `dim` numbers each, in blocks with their ids.

    blocks and skipped give the same each time that they are called. options: with which rows
    were read and embedded.
    """

    rows: int
    dim: int
    dtype: np.dtype[Any]
    provenance: Provenance
    blocks: Callable[[], Iterator[tuple[list[str], Array]]]
    skipped: Callable[[], Iterable[Skipped]] = tuple
    options: Mapping[str, Any] = field(default_factory=dict)

    def first_skipped(self) -> list[dict[str, Any]]:
        """What was left out, as far as it goes into the file itself."""
        return [asdict(one) for one, _ in zip(self.skipped(), range(_NAMED_SKIPS), strict=False)]


def check_output(path: Path) -> None:
    """Raise ConfigurationError for an output that could not be written at the end."""
    if path.suffix not in _WRITERS:
        raise ConfigurationError(f"{path} does not end in one of {', '.join(_WRITERS)}")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise ConfigurationError(f"{path} cannot be written: is {path.parent} a writable folder?")
    if path.suffix == ".parquet":
        _import_pyarrow()


def write_output(path: Path, contents: Contents, *, scratch: Path | None = None) -> None:
    """Write in the format of the path's ending; an older file is replaced at the end.

    .npy: the array, with ids, provenance, options and what was skipped in `<path>.json`.
    .parquet: columns `id` and `embedding`; the rest as JSON in the schema's metadata.
    .safetensors: the tensor `embedding`; `ids` as JSON and the provenance in the metadata. Ids
    beyond 32 MB go to `<path>.json`, as with .npy.
    The metadata names the first 1,000 rows that were skipped; where there are more, they all are
    in `<path>.skipped.jsonl`. scratch: a folder of the same file system for unfinished files.
    """
    folder = scratch or path.parent
    listed = path.with_name(path.name + ".skipped.jsonl")
    if len(contents.first_skipped()) == _NAMED_SKIPS:
        with _replacing(listed, folder) as file:
            for one in contents.skipped():
                file.write(json.dumps(asdict(one)).encode() + b"\n")
    else:
        listed.unlink(missing_ok=True)
    _WRITERS[path.suffix](path, contents, folder)


def sidecar(path: Path) -> Path:
    """Where the ids and provenance of an .npy file are."""
    return path.with_name(path.name + ".json")


def _write_sidecar(path: Path, contents: Contents, folder: Path) -> None:
    rest = {
        "provenance": asdict(contents.provenance),
        "options": contents.options,
        "skipped": contents.first_skipped(),
    }
    with _replacing(sidecar(path), folder) as file:
        file.write(b'{\n"ids": [')
        for piece in _ids_json(contents):
            file.write(piece)
        file.write(b"],\n" + json.dumps(rest, indent=1).removeprefix("{").encode())


def _ids_json(contents: Contents) -> Iterator[bytes]:
    """The ids as the inside of a JSON list."""
    comma = ""
    for ids, _ in contents.blocks():
        yield (comma + json.dumps(ids)[1:-1]).encode()
        comma = ", "


def _write_npy(path: Path, contents: Contents, folder: Path) -> None:
    _write_sidecar(path, contents, folder)
    with _replacing(path, folder) as file:
        file.write(npy_header((contents.rows, contents.dim), contents.dtype))
        _write_rows(file, contents)


def _write_rows(file: IO[bytes], contents: Contents) -> None:
    for _, block in contents.blocks():
        file.write(np.ascontiguousarray(block, contents.dtype).tobytes())


def _write_parquet(path: Path, contents: Contents, folder: Path) -> None:
    pa, parquet = _import_pyarrow()
    about = {
        "vim_embed.provenance": json.dumps(asdict(contents.provenance)),
        "vim_embed.options": json.dumps(contents.options),
        "vim_embed.skipped": json.dumps(contents.first_skipped()),
    }
    number = pa.from_numpy_dtype(contents.dtype)
    columns = [("id", pa.string()), ("embedding", pa.list_(number, contents.dim))]
    schema = pa.schema(columns, metadata=about)
    with _replacing(path, folder) as file, parquet.ParquetWriter(file, schema) as writer:
        for ids, block in contents.blocks():
            flat = pa.array(np.ascontiguousarray(block).reshape(-1))
            lists = pa.FixedSizeListArray.from_arrays(flat, contents.dim)
            arrays = [pa.array(ids, pa.string()), lists]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def _import_pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise ConfigurationError(
            'writing .parquet needs pyarrow: pip install "vim-embed[parquet]"'
        ) from None
    return pyarrow, pyarrow.parquet


def _write_safetensors(path: Path, contents: Contents, folder: Path) -> None:
    about = {name: _text(value) for name, value in asdict(contents.provenance).items()}
    about["options"] = json.dumps(contents.options)
    about["skipped"] = json.dumps(contents.first_skipped())
    size = sum(len(piece) for piece in _ids_json(contents))
    if size <= _MAX_HEADER_IDS:
        about["ids"] = "[" + b"".join(_ids_json(contents)).decode() + "]"
    else:
        _write_sidecar(path, contents, folder)
    shape = (contents.rows, contents.dim)
    with _replacing(path, folder) as file:
        file.write(safetensors_header({"embedding": (contents.dtype, shape)}, about))
        _write_rows(file, contents)


def _text(value: str | bool) -> str:
    return value if isinstance(value, str) else str(value).lower()


@contextmanager
def _replacing(path: Path, folder: Path) -> Iterator[IO[bytes]]:
    """A file in `folder` that takes the place of `path` when the block ends well."""
    name = f"joined{path.suffix}" if folder != path.parent else f".{path.name}.{os.getpid()}.tmp"
    temporary = folder / name
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)  # before the parts that it was made of may go
    finally:
        temporary.unlink(missing_ok=True)


_WRITERS: dict[str, Callable[[Path, Contents, Path], None]] = {
    ".npy": _write_npy,
    ".parquet": _write_parquet,
    ".safetensors": _write_safetensors,
}
