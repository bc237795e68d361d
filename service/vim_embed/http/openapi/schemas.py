"""The JSON answers as OpenAPI schemas. Nothing here shapes an answer: the routes do."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Path
from fastapi.openapi.models import Example
from pydantic import BaseModel, ConfigDict, Field

from vim_embed.engines.interface import State
from vim_embed.errors import ERRORS, InternalError, ServiceError, Unauthorized
from vim_embed.types.preprocessing import PerChannel

EXAMPLE_ID = "0f8b2c1d9e7a4c53b6a1d2e3f4a5b6c7"
Described = dict[str, Any]
_NAMES = {
    "vim_tiny": Example(value="vim-tiny"),
    "unknown_model": Example(value="no-such-model"),
}
ModelName = Annotated[
    str, Path(description="a configured model's name or Hub id", openapi_examples=_NAMES)
]


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ErrorBody(_Answer):
    """A refusal or failure."""

    code: str = Field(description="what to branch on; see docs/http.md")
    message: str = Field(description="for a person, with the fix in it")
    request_id: str
    detail: dict[str, Any] | None = None


class ErrorAnswer(_Answer):
    """The one shape of every error."""

    error: ErrorBody


class Base64Array(_Answer):
    """An array as little-endian bytes."""

    base64: str
    shape: list[int]
    dtype: str


class Provenance(_Answer):
    """Where an embedding comes from; the same as the `X-Vim-Embed-` headers."""

    model: str
    revision: str
    weights_digest: str
    family: str
    preprocessing_digest: str
    pooling: str
    dtype: str
    backend: str
    device: str
    exact: Literal["true", "false"]
    exact_rows: str
    random_weights: Literal["true", "false"]
    version: str
    grid: str | None = None
    native_size: str | None = None
    fits: str | None = None
    fits_rows: str | None = None
    certificate: str | None = None


Numbers = list[list[float]] | list[list[list[float]]] | Base64Array


class EmbedAnswer(_Answer):
    """Embeddings (B, D); with `layers`, one array a layer in their place."""

    embedding: Numbers | None = None
    layers: dict[str, Numbers] | None = None
    provenance: Provenance


class EmbedBody(_Answer):
    """Pixels (B, 3, H, W), or (3, H, W) for one image."""

    inputs: list[Any] | Base64Array
    dtype: Literal["uint8", "float16", "float32", "float64"] = "float32"


class WeightsEntry(_Answer):
    source: str
    revision: str | None
    file: str | None
    digest: str
    random: bool
    tensors: str


class PreprocessingEntry(_Answer):
    image_size: int
    interpolation: str
    mean: PerChannel
    std: PerChannel
    channels: str
    resize_to: int
    keep_aspect: bool
    digest: str


class LimitsEntry(_Answer):
    max_rows: int
    max_body_bytes: int
    batch_rows: int


class TokensEntry(_Answer):
    grid: list[int]
    cls: int | None
    registers: list[int]
    others: list[int]


class KeptEntry(_Answer):
    """Share of nearest neighbours kept by one pooling, with its 95 % interval."""

    pooling: str
    kept: float
    std_error: float
    low: float
    high: float


class CertificateEntry(_Answer):
    """A certificate of precision; see docs/precision.md."""

    statement: str
    model: str
    dtype: str
    backend: str
    device: str
    weights_digest: str
    preprocessing_digest: str
    images_digest: str
    images: int
    k: int
    kept: list[KeptEntry]
    speed: float
    faults: list[str]
    version: str
    torch_version: str
    source: str


class CheckedOutputEntry(_Answer):
    """Relative L2 error at load of a pooling, all tokens or the worst token, on its worst image."""

    what: str
    error: float
    tolerance: float
    image: str


class LoadCheckEntry(_Answer):
    outputs: list[CheckedOutputEntry]
    images: list[str]


class ModelEntry(_Answer):
    """A configured model; what follows `reason` is there once it is ready."""

    name: str
    aliases: list[str]
    state: State
    reason: str | None = None
    pinned: bool
    degraded: dict[str, str]
    kind: str | None = None
    family: str | None = None
    family_reason: str | None = None
    dim: int | None = None
    features_dim: int | None = None
    classifier: str | None = None
    dtype: str | None = None
    dtype_reason: str | None = None
    certificate: CertificateEntry | None = None
    self_check: LoadCheckEntry | None = None
    device: str | None = None
    backend: str | None = None
    backend_reason: str | None = None
    weights: WeightsEntry | None = None
    preprocessing: PreprocessingEntry | None = None
    min_size: int | None = None
    any_size: bool | None = None
    exact_rows: int | None = None
    exact_reason: str | None = None
    poolings: list[str] | None = None
    channels: int | None = None
    tokens: TokensEntry | None = None
    patch_size: int | None = None
    patch_stride: int | None = None
    granularities: list[str] | None = None
    limits: LimitsEntry | None = None


class ModelsAnswer(_Answer):
    models: list[ModelEntry]
    default: str


class CheckEntry(_Answer):
    """A device's relative L2 error on the model's golden sample."""

    error: float
    tolerance: float
    same_bytes: bool | None = None
    ok: bool


class CheckAnswer(_Answer):
    model: str
    ok: bool
    state: State
    reason: str | None = None
    reports: list[CheckEntry]


class LayersAnswer(_Answer):
    model: str
    granularity: str
    layers: list[str]
    kinds: dict[str, str]


class LiveAnswer(_Answer):
    status: Literal["live"]


class ReadyAnswer(_Answer):
    """degraded: by device (or model), why the service gives less than its settings ask for."""

    status: Literal["ready"]
    models: dict[str, State]
    degraded: dict[str, str]


class QueueEntry(_Answer):
    waiting_rows: int
    capacity_rows: int


class ThroughputEntry(_Answer):
    rows_per_second: float
    rows_each_second: list[int]


class BatchesEntry(_Answer):
    count: int
    mean_rows: float | None


class LatencyEntry(_Answer):
    count: int
    p50_ms: float | None
    p99_ms: float | None


class FailureEntry(_Answer):
    code: str
    status: int
    message: str
    route: str
    request_id: str
    time: str
    count: int


class StatusAnswer(_Answer):
    """The status page's numbers; see docs/page.md."""

    version: str
    ready: bool
    reason: str | None = None
    default: str
    devices: dict[str, str]
    degraded: dict[str, str]
    models: list[ModelEntry]
    queue: QueueEntry
    uptime_seconds: float
    window_seconds: int
    throughput: ThroughputEntry
    batches: BatchesEntry
    latency: LatencyEntry
    errors: list[FailureEntry]


class V2ErrorAnswer(_Answer):
    """A failure under `/v2`, as the Open Inference Protocol has it."""

    error: str


def answers(
    good: Described, *kinds: type[ServiceError], open_to_all: bool = False
) -> dict[int | str, Described]:
    """`responses=` of a route: `good` for 200, and the errors that it may give.

    open_to_all: the route needs no API key.
    """
    every: set[type[ServiceError]] = {InternalError, *kinds}
    if not open_to_all:
        every.add(Unauthorized)
    described: dict[int | str, Described] = {200: {"description": "As asked", **good}}
    for status in sorted({kind.status for kind in every}):
        here = sorted((kind for kind in every if kind.status == status), key=lambda k: k.code)
        described[status] = {
            "model": ErrorAnswer,
            "description": ", ".join(f"`{kind.code}`" for kind in here),
            "content": {"application/json": {"examples": {k.code: _error(k) for k in here}}},
        }
    return described


def v2_failures() -> dict[int | str, Described]:
    """`responses=` of the routes under `/v2`, which have an error shape of their own."""
    texts: dict[int, list[str]] = {}
    for kind in ERRORS:
        texts.setdefault(kind.status, []).append(kind.__name__)
    return {
        status: {"model": V2ErrorAnswer, "description": ", ".join(sorted(names))}
        for status, names in sorted(texts.items())
    }


def json_answer(model: type[BaseModel], **examples: object) -> Described:
    """A JSON answer of that schema, with named examples."""
    named = {name: {"value": value} for name, value in examples.items()}
    return {"model": model, "content": {"application/json": {"examples": named}}}


def inline_schema(model: type[BaseModel]) -> Described:
    """A body's schema; what it refers to is in the document already, as part of an answer."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    return {key: value for key, value in schema.items() if key != "$defs"}


def _error(kind: type[ServiceError]) -> Described:
    body = {"code": kind.code, "message": "what is wrong, and the fix", "request_id": EXAMPLE_ID}
    return {"value": {"error": body}}
