"""Reads what `vim-embed embed` and `vim-embed demo` write, for scoring and pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vim_embed_client.bulk.outputs import sidecar
from vim_embed_client.errors import ConfigurationError, InputError
from vim_embed_client.formats import Array, parse_safetensors

_NAMES = ("embedding", "embeddings")


@dataclass(frozen=True, kw_only=True)
class EmbeddingFile:
    """embeddings: (n, d). ids: of its rows, where the file has them.

    rows: (n,) where they are in the file, if some were left out or moved. provenance: what the
    service said of its model, under the names of `results.Provenance`; empty where the file does
    not tell.
    """

    label: str
    embeddings: Array
    ids: list[str] | None = None
    rows: Array | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def model(self) -> str:
        """The model's name, or nothing."""
        return str(self.provenance.get("model", ""))

    @property
    def random_weights(self) -> bool:
        """Whether the numbers mean nothing."""
        return str(self.provenance.get("random_weights", "")).lower() == "true"

    @property
    def origin(self) -> str:
        """Model, weights and how they were used, in a line for figures."""
        if not self.model:
            return "the file does not name its model"
        kind, _, digest = str(self.provenance.get("weights_digest", "")).rpartition(":")
        named = {"pooling": "{} pooling", "dtype": "{}", "version": "vim-embed {}"}
        told = {name: str(self.provenance.get(name, "")) for name in named}
        parts = [self.model, f"weights {kind}:{digest[:12]}" if digest else ""]
        parts += [named[name].format(text) for name, text in told.items() if text]
        return ", ".join(part for part in parts if part)

    @property
    def path(self) -> Path:
        """The file, without the name of one of its arrays."""
        return Path(self.label.removesuffix(f":{self.array}")) if self.array else Path(self.label)

    @property
    def array(self) -> str:
        """Which of the file's arrays this is, where the label says so."""
        head, _, name = self.label.rpartition(":")
        return name if Path(head).suffix in _READERS else ""

    def name(self, row: int) -> str:
        """What to call a row in messages and figures: its id, else its number."""
        return self.ids[row] if self.ids is not None else f"row {self.numbers[row]}"

    @property
    def numbers(self) -> Array:
        """(n,) each row's place in the file, counted from 0."""
        return np.arange(len(self)) if self.rows is None else self.rows

    def take(self, rows: Any) -> EmbeddingFile:
        """The file with these rows only: indices or a mask."""
        ids = None if self.ids is None else [self.ids[i] for i in np.arange(len(self))[rows]]
        return replace(self, embeddings=self.embeddings[rows], ids=ids, rows=self.numbers[rows])

    def __len__(self) -> int:
        return len(self.embeddings)


def read_embeddings(argument: str) -> EmbeddingFile:
    """Read FILE, or one array or column of it: FILE:NAME.

    .npy (with its .npy.json), .npz, .safetensors and .parquet. Raises ConfigurationError for a
    file or name that is not there, and InputError for one that cannot be read.
    """
    path, name = split_argument(argument)
    reader = _READERS.get(path.suffix)
    if reader is None:
        raise ConfigurationError(f"{path} does not end in one of {', '.join(_READERS)}")
    try:
        found = reader(path, name)
    except ConfigurationError:
        raise
    except Exception as error:  # readers of foreign files raise errors of every kind
        raise InputError(f"{path} cannot be read: {error}") from None
    shape = found.embeddings.shape
    if len(shape) != 2 or 0 in shape or found.embeddings.dtype.kind not in "fiu":
        raise InputError(
            f"{argument} holds {found.embeddings.dtype} of shape {shape}: embeddings are numbers "
            "of shape (n, d), one row for each source; choose another array with FILE:NAME, or "
            "embed again"
        )
    if found.ids is not None and len(found.ids) != len(found.embeddings):
        raise InputError(f"{path} has {len(found.embeddings)} rows and {len(found.ids)} ids")
    return replace(found, label=argument)


def split_argument(argument: str) -> tuple[Path, str | None]:
    """FILE:NAME as (FILE, NAME), FILE as (FILE, None); ConfigurationError if it is not there."""
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
    return EmbeddingFile(label="", embeddings=array, ids=ids, provenance=provenance)


_READERS: dict[str, Callable[[Path, str | None], EmbeddingFile]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
    ".parquet": _read_parquet,
}
