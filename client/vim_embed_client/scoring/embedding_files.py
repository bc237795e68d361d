"""Reads what `vim-embed embed` and `vim-embed demo` write, for scoring and pictures."""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vim_embed_client.bulk.outputs import METADATA, NO_SURVEY, read_sidecar
from vim_embed_client.bulk.recorded_options import recorded_options
from vim_embed_client.bulk.sources.options import ReadOptions
from vim_embed_client.errors import ConfigurationError, InputError
from vim_embed_client.formats import Array, parse_safetensors
from vim_embed_client.paths import not_there
from vim_embed_client.scoring.ids import complete, id_texts
from vim_embed_client.scoring.parquet import ParquetColumns
from vim_embed_pixels.spelling import absent, listed
from vim_embed_pixels.surveys import HEAD

_NAMES = ("embedding", "embeddings")


class _Contents(NamedTuple):
    """embeddings: (n, d). about: what else the file says, as `outputs.Contents.metadata`."""

    embeddings: Array
    ids: Sequence[Any] | None
    about: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class EmbeddingFile:
    """embeddings: (n, d). ids: of its rows, where the file has them.

    rows: (n,) where they are in the file, if some were left out or moved. provenance: what the
    service said of its model, under the names of `results.Provenance`; empty where the file does
    not tell. options: with which the rows were read, if the file tells. mode: as of
    `outputs.Contents`.
    """

    label: str
    embeddings: Array
    ids: list[str] | None = None
    rows: Array | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    options: ReadOptions | None = None
    mode: str = ""

    @property
    def model(self) -> str:
        """The model's name, or nothing."""
        return str(self.provenance.get("model", ""))

    @property
    def survey(self) -> str:
        """The survey's name, or nothing: that of `--mode`, or else of `--survey`."""
        if self.mode not in ("", NO_SURVEY):
            return self.mode
        name = self.options and self.options.stretch.survey
        return (name or "").removesuffix(HEAD)

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


def read_embeddings(argument: str, *, by_row: bool = False) -> EmbeddingFile:
    """Read FILE, or one array or column of it: FILE:NAME.

    .npy (with its .npy.json), .npz, .safetensors and .parquet. A null row is read as NaN. by_row:
    ids are only names here, so faulty ones are left out. Raises ConfigurationError for a file or
    name that is not there, and InputError for one that cannot be read, or whose ids have gaps.
    """
    path, name = split_argument(argument)
    reader = _READERS.get(path.suffix)
    if reader is None:
        raise ConfigurationError(f"{path} does not end in one of {', '.join(_READERS)}")
    try:
        array, ids, about = reader(path, name)
    except (ConfigurationError, InputError):
        raise
    except Exception as error:  # readers of foreign files raise errors of every kind
        raise InputError(f"{path} cannot be read: {error}") from None
    if array.ndim != 2 or 0 in array.shape or array.dtype.kind not in "fiu":
        raise InputError(
            f"{argument} holds {array.dtype} of shape {array.shape}: embeddings are numbers "
            "of shape (n, d), one row for each source; choose another array with FILE:NAME, or "
            "embed again"
        )
    names = None if ids is None else _names(ids, len(array), path, by_row=by_row)
    return EmbeddingFile(
        label=argument,
        embeddings=array,
        ids=names,
        provenance=about.get("provenance", {}),
        options=recorded_options(about.get("options")),
        mode=about.get("mode", ""),
    )


def vector_names(argument: str) -> list[str]:
    """FILE:NAME of each embedding or layer in a file, in its order; of FILE:NAME itself, that one.

    Raises ConfigurationError for a file that is not there or holds none, InputError for one that
    cannot be read.
    """
    path, name = split_argument(argument)
    if name is not None:
        return [argument]
    if path.suffix not in _READERS:
        raise ConfigurationError(f"{path} does not end in one of {', '.join(_READERS)}")
    try:
        names = _LISTED[path.suffix](path)
    except Exception as error:  # readers of foreign files raise errors of every kind
        raise InputError(f"{path} cannot be read: {error}") from None
    if not names:
        raise ConfigurationError(f"{path} has no embeddings: see `vim-embed embed --layers`")
    return [f"{path}:{name}" if name else str(path) for name in names]


def _names(ids: Sequence[Any], rows: int, path: Path, *, by_row: bool) -> list[str] | None:
    try:
        if len(ids) != rows:
            raise InputError(f"{path} has {rows} rows and {len(ids)} ids")
        return complete(id_texts(ids), str(path))
    except InputError:
        if by_row:
            return None
        raise


def split_argument(argument: str) -> tuple[Path, str | None]:
    """FILE:NAME as (FILE, NAME), FILE as (FILE, None); ConfigurationError if it is not there."""
    path = Path(argument)
    head, colon, name = argument.rpartition(":")
    if not path.exists() and colon and Path(head).exists():
        return Path(head), name
    if not path.exists():
        raise not_there(path)
    return path, None


def _read_npy(path: Path, name: str | None) -> _Contents:
    about = read_sidecar(path)
    layers = about.get("layers", [])
    if name is not None and name not in layers:
        told = f"has {absent([name], layers, 'layer')}" if layers else "holds one array"
        raise ConfigurationError(f"{path} {told}: leave out :{name}")
    array = np.load(path, mmap_mode="r" if layers else None, allow_pickle=False)
    if layers:
        array = _choose({one: array[:, i] for i, one in enumerate(layers)}, name, path)
    return _Contents(array, about.get("ids"), about)


def _read_npz(path: Path, name: str | None) -> _Contents:
    with np.load(path, allow_pickle=False) as arrays:
        ids = arrays["ids"].tolist() if "ids" in arrays else None
        about = json.loads(str(arrays[METADATA])) if METADATA in arrays else {}
        chosen = _choose(_Members(arrays), name, path)
    return _Contents(chosen, ids, about)


class _Members(Mapping[str, Array]):
    """The arrays of an open .npz but ids and metadata, each read when it is taken."""

    def __init__(self, arrays: Any) -> None:
        self._arrays = arrays
        self._names = [name for name in arrays if name not in ("ids", METADATA)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, name: str) -> Array:
        if name not in self._names:
            raise KeyError(name)
        array: Array = self._arrays[name]
        return array


def _read_safetensors(path: Path, name: str | None) -> _Contents:
    tensors, metadata = _tensors(path)
    ids = json.loads(metadata["ids"]) if "ids" in metadata else read_sidecar(path).get("ids")
    provenance = json.loads(metadata["provenance"]) if "provenance" in metadata else metadata
    about = {"provenance": provenance, "options": metadata.get("options")}
    return _Contents(_choose(tensors, name, path), ids, about)


def safetensors_metadata(path: Path) -> dict[str, str]:
    """The texts of a file's header."""
    return _tensors(path)[1]


def _tensors(path: Path) -> tuple[dict[str, Array], dict[str, str]]:
    """Views of the mapped file: a tensor is read when it is used."""
    with path.open("rb") as file:
        return parse_safetensors(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _read_parquet(path: Path, name: str | None) -> _Contents:
    columns = ParquetColumns(path)
    if name is None and not columns:
        raise ConfigurationError(
            f"{path} has no column of vectors, but {listed(columns.others())}: a row's "
            "embedding is a list of numbers in one column"
        )
    return _Contents(_choose(columns, name, path), columns.ids(), columns.about())


def _choose(arrays: Mapping[str, Array], name: str | None, path: Path) -> Array:
    if name is not None:
        if name not in arrays:
            raise ConfigurationError(f"{path} has {absent([name], list(arrays), 'array')}")
        return arrays[name]
    named = [key for key in _NAMES if key in arrays]
    candidates = named or _tables(arrays)
    if len(candidates) != 1:
        raise ConfigurationError(
            f"{path} has {', '.join(candidates) or 'no embeddings'}: choose one with {path}:NAME"
        )
    return arrays[candidates[0]]


def _tables(arrays: Mapping[str, Array]) -> list[str]:
    """Names of what may be embeddings; columns are not read for it."""
    if isinstance(arrays, ParquetColumns):
        return list(arrays)
    return [key for key, value in arrays.items() if value.ndim == 2]


_READERS: dict[str, Callable[[Path, str | None], _Contents]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
    ".parquet": _read_parquet,
}


def _listed_npz(path: Path) -> list[str]:
    with np.load(path, allow_pickle=False) as arrays:
        members = _Members(arrays)
        return [name for name in members if members[name].ndim == 2]


_LISTED: dict[str, Callable[[Path], list[str]]] = {
    ".npy": lambda path: read_sidecar(path).get("layers", []) or [""],
    ".npz": _listed_npz,
    ".safetensors": lambda path: _tables(_tensors(path)[0]),
    ".parquet": lambda path: list(ParquetColumns(path)),
}
