"""Reads what `vim-embed embed` and `vim-embed demo` write, for scoring, and pairs the rows."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vim_embed_client.errors import ConfigurationError, InputError
from vim_embed_client.outputs import sidecar
from vim_embed_client.wire import Array, parse_safetensors

_NAMES = ("embedding", "embeddings")
_ROW = re.compile(r"#\d+$")


@dataclass(frozen=True, kw_only=True)
class EmbeddingFile:
    """embeddings: (n, d). ids: of its rows, where the file has them.

    model, random_weights: from the file's provenance; empty and False without one.
    """

    label: str
    embeddings: Array
    ids: list[str] | None = None
    model: str = ""
    random_weights: bool = False


def read_embeddings(argument: str) -> EmbeddingFile:
    """Read FILE, or one array or column of it: FILE:NAME.

    .npy (with its .npy.json), .npz, .safetensors and .parquet. Raises ConfigurationError for a
    file or name that is not there, and InputError for one that cannot be read.
    """
    path, name = _split(argument)
    reader = _READERS.get(path.suffix)
    if reader is None:
        raise ConfigurationError(f"{path} does not end in one of {', '.join(_READERS)}")
    try:
        found = reader(path, name)
    except ConfigurationError:
        raise
    except Exception as error:  # readers of foreign files raise errors of every kind
        raise InputError(f"{path} cannot be read: {error}") from None
    if found.ids is not None and len(found.ids) != len(found.embeddings):
        raise InputError(f"{path} has {len(found.embeddings)} rows and {len(found.ids)} ids")
    return replace(found, label=argument)


def pair(first: EmbeddingFile, second: EmbeddingFile) -> tuple[Array, Array]:
    """The embeddings with the rows of `second` in the order of `first`.

    Ids are compared below the folder that a file's ids have in common, so that `hst/7.png`
    and `hsc/7.png` are one source; without ids on both sides rows go by position. Raises
    InputError where the ids name different sources.
    """
    if first.ids is None or second.ids is None:
        return first.embeddings, second.embeddings
    mine, theirs = _below_common_folder(first.ids), _below_common_folder(second.ids)
    if mine == theirs:
        return first.embeddings, second.embeddings
    places = {name: row for row, name in enumerate(theirs)}
    if len(mine) != len(theirs) or len(places) != len(theirs) or places.keys() != set(mine):
        raise InputError(_disagreement(mine, theirs))
    return first.embeddings, second.embeddings[[places[name] for name in mine]]


def _split(argument: str) -> tuple[Path, str | None]:
    path = Path(argument)
    head, colon, name = argument.rpartition(":")
    if not path.exists() and colon and Path(head).exists():
        return Path(head), name
    if not path.exists():
        raise ConfigurationError(f"{argument} is not there")
    return path, None


def _read_npy(path: Path, name: str | None) -> EmbeddingFile:
    if name is not None:
        raise ConfigurationError(f"{path} holds one array: leave out :{name}")
    array = np.load(path, allow_pickle=False)
    beside = sidecar(path)
    about = json.loads(beside.read_text()) if beside.exists() else {}
    return _described(array, about.get("ids"), about.get("provenance", {}))


def _read_npz(path: Path, name: str | None) -> EmbeddingFile:
    with np.load(path, allow_pickle=False) as arrays:
        ids = [str(value) for value in arrays["ids"].tolist()] if "ids" in arrays else None
        chosen = _choose({key: arrays[key] for key in arrays if key != "ids"}, name, path)
    return EmbeddingFile(label="", embeddings=chosen, ids=ids)


def _ids_beside(path: Path) -> Any:
    beside = sidecar(path)
    return json.loads(beside.read_text()).get("ids") if beside.exists() else None


def _read_safetensors(path: Path, name: str | None) -> EmbeddingFile:
    tensors, metadata = parse_safetensors(path.read_bytes())
    ids = json.loads(metadata["ids"]) if "ids" in metadata else _ids_beside(path)
    provenance = json.loads(metadata["provenance"]) if "provenance" in metadata else metadata
    return _described(_choose(tensors, name, path), ids, provenance)


def _read_parquet(path: Path, name: str | None) -> EmbeddingFile:
    try:
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise ConfigurationError(
            'reading .parquet needs pyarrow: pip install "vim-embed[parquet]"'
        ) from None
    table = pyarrow.parquet.read_table(path)
    columns = {
        key: array for key in table.column_names if (array := _matrix(table[key])) is not None
    }
    about = (table.schema.metadata or {}).get(b"vim_embed.provenance", b"{}")
    ids = [str(value) for value in table["id"].to_pylist()] if "id" in table.column_names else None
    return _described(_choose(columns, name, path), ids, json.loads(about))


def _matrix(column: Any) -> Array | None:
    """A column of lists of one length as (n, d); None for any other column."""
    lists = column.combine_chunks()
    if "list" not in str(lists.type) or not len(lists) or lists.null_count:
        return None
    flat: Array = lists.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(lists), -1) if flat.size % len(lists) == 0 else None


def _choose(arrays: Mapping[str, Array], name: str | None, path: Path) -> Array:
    if name is not None:
        if name not in arrays:
            raise ConfigurationError(f"{path} has no {name!r}, but {', '.join(arrays)}")
        return arrays[name]
    named = [key for key in _NAMES if key in arrays]
    candidates = named or [key for key, value in arrays.items() if value.ndim == 2]
    if len(candidates) != 1:
        raise ConfigurationError(
            f"{path} has {', '.join(candidates) or 'no embeddings'}: choose one with {path}:NAME"
        )
    return arrays[candidates[0]]


def _described(array: Array, ids: list[str] | None, provenance: Mapping[str, Any]) -> EmbeddingFile:
    return EmbeddingFile(
        label="",
        embeddings=array,
        ids=ids,
        model=str(provenance.get("model", "")),
        random_weights=str(provenance.get("random_weights", "")).lower() == "true",
    )


def _below_common_folder(ids: Sequence[str]) -> list[str]:
    paths = [os.path.normpath(_ROW.sub("", name)) for name in ids]
    try:
        folder = os.path.commonpath(paths)
    except ValueError:  # absolute and relative paths mixed
        return list(ids)
    return [
        (os.path.relpath(path, folder) if folder else path) + name[len(_ROW.sub("", name)) :]
        for path, name in zip(paths, ids, strict=True)
    ]


def _disagreement(mine: Sequence[str], theirs: Sequence[str]) -> str:
    only_mine, only_theirs = set(mine) - set(theirs), set(theirs) - set(mine)
    examples = ", ".join(sorted(only_mine)[:2] + sorted(only_theirs)[:2]) or "ids repeat"
    return (
        f"the files name different sources ({len(only_mine)} only in the first, "
        f"{len(only_theirs)} only in the second: {examples}); pair rows by position with --by-row"
    )


_READERS: dict[str, Callable[[Path, str | None], EmbeddingFile]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
    ".parquet": _read_parquet,
}
