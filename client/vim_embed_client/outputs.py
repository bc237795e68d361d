"""Writes embeddings to .npy, .parquet or .safetensors: the whole file or none of it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from vim_embed_client.embed_files import FileEmbeddings
from vim_embed_client.errors import ConfigurationError
from vim_embed_client.wire import safetensors_chunks


def check_output(path: Path) -> None:
    """Raise ConfigurationError for an output that could not be written at the end."""
    if path.suffix not in _WRITERS:
        raise ConfigurationError(f"{path} does not end in one of {', '.join(_WRITERS)}")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise ConfigurationError(f"{path} cannot be written: is {path.parent} a writable folder?")
    if path.suffix == ".parquet":
        _import_pyarrow()


def write_output(path: Path, result: FileEmbeddings) -> None:
    """Write `result` in the format of the path's ending; an older file is replaced at the end.

    .npy: the array, with ids, provenance and what was skipped in `<path>.json`.
    .parquet: columns `id` and `embedding`; the rest as JSON in the schema's metadata.
    .safetensors: the tensor `embedding`; `ids` as JSON and the provenance in the metadata.
    """
    _WRITERS[path.suffix](path, result)


def sidecar(path: Path) -> Path:
    """Where the ids and provenance of an .npy file are."""
    return path.with_name(path.name + ".json")


def _write_npy(path: Path, result: FileEmbeddings) -> None:
    about = {
        "ids": result.ids,
        "provenance": asdict(result.provenance),
        "skipped": [asdict(skipped) for skipped in result.skipped],
    }
    with _replacing(sidecar(path)) as temporary:
        temporary.write_text(json.dumps(about, ensure_ascii=False, indent=1))
    with _replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, result.embeddings, allow_pickle=False)


def _write_parquet(path: Path, result: FileEmbeddings) -> None:
    pa, parquet = _import_pyarrow()
    width = result.embeddings.shape[1]
    flat = pa.array(np.ascontiguousarray(result.embeddings).reshape(-1))
    about = {
        "vim_embed.provenance": json.dumps(asdict(result.provenance)),
        "vim_embed.skipped": json.dumps([asdict(skipped) for skipped in result.skipped]),
    }
    table = pa.table(
        {
            "id": pa.array(result.ids, pa.string()),
            "embedding": pa.FixedSizeListArray.from_arrays(flat, width),
        }
    ).replace_schema_metadata(about)
    with _replacing(path) as temporary:
        parquet.write_table(table, temporary)


def _import_pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise ConfigurationError(
            'writing .parquet needs pyarrow: pip install "vim-embed[parquet]"'
        ) from None
    return pyarrow, pyarrow.parquet


def _write_safetensors(path: Path, result: FileEmbeddings) -> None:
    about = {name: _text(value) for name, value in asdict(result.provenance).items()}
    about["ids"] = json.dumps(result.ids, ensure_ascii=False)
    about["skipped"] = json.dumps([asdict(skipped) for skipped in result.skipped])
    with _replacing(path) as temporary, temporary.open("wb") as file:
        file.writelines(safetensors_chunks({"embedding": result.embeddings}, about))


def _text(value: str | bool) -> str:
    return value if isinstance(value, str) else str(value).lower()


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` that takes its place when the block ends well."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


_WRITERS: dict[str, Callable[[Path, FileEmbeddings], None]] = {
    ".npy": _write_npy,
    ".parquet": _write_parquet,
    ".safetensors": _write_safetensors,
}
