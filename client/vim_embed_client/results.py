"""What the client returns: arrays with the provenance of their numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, NotRequired, Self, TypedDict

import numpy as np

from vim_embed_client.errors import BadAnswerError
from vim_embed_client.formats import Array

_PREFIX = "X-Vim-Embed-"
_FLAGS = ("exact", "random_weights")


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where embeddings come from: enough to tell whether two sets may be compared.

    weights_digest: sha256 of the weights. family: the kind of model that they were read as, since
    some have the same tensors. preprocessing_digest: of size, interpolation, mean and
    std. dtype: of the computation, not of the answer. random_weights: the numbers mean nothing.
    exact_rows: rows of every batch at the native size, in exact mode. version: the service's.
    grid: with the pooling `tokens`, rows and columns of the patches, as "14,14". certificate: what
    the model's certificate of precision says of this pooling, if the service has one. fits: the
    options with which FITS files were read, as in a query.
    """

    model: str
    revision: str = ""
    weights_digest: str = ""
    family: str = ""
    preprocessing_digest: str = ""
    pooling: str = ""
    dtype: str = ""
    backend: str = ""
    device: str = ""
    exact: bool = False
    exact_rows: str = ""
    random_weights: bool = False
    version: str = ""
    grid: str = ""
    certificate: str = ""
    fits: str = ""

    @classmethod
    def from_headers(cls, headers: Mapping[str, str]) -> Self:
        """Read the X-Vim-Embed-* headers of an answer."""
        found: dict[str, Any] = {}
        for name in (f.name for f in fields(cls)):
            value = headers.get(_PREFIX + name.replace("_", "-"))
            if value is not None:
                found[name] = value.lower() == "true" if name in _FLAGS else value
        if not found.get("model"):
            raise BadAnswerError(
                "the answer has no X-Vim-Embed-Model header: is the URL that of a vim-embed "
                "service, and does a proxy in between pass its headers on?"
            )
        return cls(**found)

    def differences(self, other: Provenance) -> list[str]:
        """Names of the fields in which the numbers may differ; two GPUs of one kind do not."""
        plain = {"certificate": ""}  # it says something of the numbers, and changes none
        mine, theirs = (
            asdict(p) | {"device": p.device.split(":")[0]} | plain for p in (self, other)
        )
        return [name for name in mine if mine[name] != theirs[name]]

    def with_devices_of(self, other: Provenance) -> Provenance:
        """This one, of rows that the other's devices computed too: `cuda:0,cuda:1`."""
        if other.device == self.device:
            return self
        devices = {*self.device.split(","), *other.device.split(",")} - {""}
        return replace(self, device=",".join(sorted(devices)))


@dataclass(frozen=True, kw_only=True, eq=False)
class Embeddings:
    """One embedding per row, in the order of the rows; usable wherever an array is.

    embeddings: (B, D), with the pooling `tokens` (B, L, D), of the dtype asked for, not
    L2-normalised. grid: of tokens. request_ids, server_timing: one per request that the batch
    took; the timing in milliseconds (queue, forward, total).
    """

    embeddings: Array
    provenance: Provenance
    request_ids: tuple[str, ...] = ()
    server_timing: tuple[Mapping[str, float], ...] = ()

    @property
    def grid(self) -> tuple[int, int] | None:
        """Of the pooling `tokens`, rows and columns of the patches, in row-major order; else None.

        Which of the L tokens are no patches, `tokens` of the model's entry says.
        """
        if not self.provenance.grid:
            return None
        rows, columns = map(int, self.provenance.grid.split(","))
        return rows, columns

    def __len__(self) -> int:
        return len(self.embeddings)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        if copy is None:  # which numpy 1 does not know
            return np.asarray(self.embeddings, dtype=dtype)
        return np.array(self.embeddings, dtype=dtype, copy=copy)


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerEmbeddings(Mapping[str, Array]):
    """Layer name -> (B, D) array, from the first layer to `last_hidden_state`.

    layers: the same as a dict. request_ids, server_timing: as in Embeddings.
    """

    layers: dict[str, Array]
    provenance: Provenance
    request_ids: tuple[str, ...] = ()
    server_timing: tuple[Mapping[str, float], ...] = ()

    def __getitem__(self, name: str) -> Array:
        return self.layers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)


class TokensEntry(TypedDict):
    """The final tokens of an image of the native size.

    grid: rows and columns of patches. cls, registers, others: indices of tokens that are none.
    """

    grid: list[int]
    cls: int | None
    registers: list[int]
    others: list[int]


class WeightsEntry(TypedDict):
    """Where a served model's weights come from."""

    source: str
    revision: str | None
    file: str | None
    digest: str
    random: bool
    tensors: NotRequired[str]


class PreprocessingEntry(TypedDict):
    """What a served model expects of its images."""

    image_size: int
    interpolation: str
    mean: list[float]
    std: list[float]
    channels: str
    resize_to: NotRequired[int]
    keep_aspect: NotRequired[bool]
    digest: str


class LimitsEntry(TypedDict):
    """The most that one request may carry, and the rows of one forward pass."""

    max_rows: int
    max_body_bytes: int
    batch_rows: int


class ModelEntry(TypedDict):
    """A served model; state is `loading`, `ready`, `idle` (the next request loads it), `failed` or
    `unloaded`, and reason says why.

    What follows `reason` is there once the model has been loaded.
    """

    name: str
    aliases: list[str]
    state: str
    reason: str | None
    degraded: NotRequired[dict[str, str]]
    kind: str
    family: NotRequired[str]
    family_reason: NotRequired[str]
    dim: int
    features_dim: NotRequired[int]
    classifier: NotRequired[str | None]
    dtype: str
    dtype_reason: NotRequired[str]
    certificate: NotRequired[dict[str, Any] | None]
    self_check: NotRequired[dict[str, Any] | None]
    device: str
    backend: str
    backend_reason: str
    exact_rows: int
    exact_reason: str
    weights: NotRequired[WeightsEntry]
    preprocessing: PreprocessingEntry
    poolings: list[str]
    channels: NotRequired[int]
    tokens: NotRequired[TokensEntry | None]
    any_size: NotRequired[bool]
    granularities: list[str]
    limits: LimitsEntry


class ModelList(TypedDict):
    """All served models, and the name of the one used where none is named."""

    models: list[ModelEntry]
    default: str


class Liveness(TypedDict):
    """The process answers."""

    status: str


class Readiness(TypedDict):
    """The service takes requests; models: name -> state.

    degraded: by device or model, why it gives less than its settings ask for; empty if it does not.
    Older services do not say.
    """

    status: str
    models: dict[str, str]
    degraded: NotRequired[dict[str, str]]
