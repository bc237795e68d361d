"""Requests to the service and readings of its answers, as plain data: no input or output here.

Both clients are thin drivers of these functions. The interface itself is docs/http.md.
"""

from __future__ import annotations

import json
import math
import uuid
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Unpack
from urllib.parse import quote

import httpx
import numpy as np
from numpy.typing import ArrayLike

from vim_embed_client import formats, pixels
from vim_embed_client.compression import CompressedBody, Compression
from vim_embed_client.errors import BadAnswerError, ConfigurationError, InputError
from vim_embed_client.formats import Array
from vim_embed_client.options import FLUX_OPTIONS, CommonOptions, ImageOptions, Options
from vim_embed_client.results import Provenance
from vim_embed_pixels.sizes import ImageSize, against_size

MAX_CHUNK_BYTES = 64 << 20
# Rows of a batch whose values are looked at, to say so where they are not normalised.
_LOOKED_AT = 8
ANSWER_DTYPES = ("float32", "float16")

Params = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request, ready to be built as often as it is tried.

    body: an array to send. images: encoded images to send, read when the request is built.
    """

    path: str
    params: Params = field(default_factory=dict)
    accept: str = "application/json"
    body: formats.NpyBody | None = None
    images: Sequence[Any] = ()
    may_retry: bool = True
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def build(self, options: Options) -> httpx.Request:
        """A fresh request. Raises InputError for an image file that cannot be read."""
        content: dict[str, Any] = {}
        headers = options.headers() | {"Accept": self.accept, "X-Request-ID": self.request_id}
        if self.body is not None:
            headers |= {"Host": httpx.URL(options.base_url).netloc.decode()}
            content["stream"] = self._body(self.body, options.compression)
            headers |= content["stream"].headers
        if self.images:
            content["files"] = pixels.image_parts(self.images)
        method = "POST" if content else "GET"
        url = options.base_url + self.path
        return httpx.Request(method, url, params=self.params, headers=headers, **content)

    @staticmethod
    def _body(
        body: formats.NpyBody, coding: Compression | None
    ) -> formats.NpyBody | CompressedBody:
        if coding is None:
            return body
        return CompressedBody(body, coding, media_type=formats.NPY)


def tell_deadline(request: httpx.Request, seconds: float | None) -> None:
    """Let the service drop a request that nobody waits for any more after so many seconds.

    Rounded up to the millisecond: the service never gives up before its client.
    """
    if seconds is not None and request.method == "POST":
        request.headers["Timeout"] = f"{math.ceil(max(seconds, 0.001) * 1000) / 1000:.3f}"


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """The rows [start, stop) of a batch and the request that embeds them."""

    start: int
    stop: int
    request: Request


@dataclass(frozen=True, kw_only=True)
class ChunkPlan:
    """A batch as requests. dtype: of the arrays to return.

    unasked_size: (H, W) of arrays, unless their size was asked for.
    """

    chunks: Sequence[Chunk]
    dtype: np.dtype[Any]
    unasked_size: tuple[int, int] | None = None

    @property
    def rows(self) -> int:
        return self.chunks[-1].stop


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came back for one chunk: named (rows, D) arrays.

    native_size: the model's, in pixels, where the images were of another; else 0.
    """

    arrays: dict[str, Array]
    provenance: Provenance
    request_id: str
    timing: dict[str, float]
    native_size: int = 0


def embed_params(
    *,
    model: str | None = None,
    pooling: str = "mean",
    dtype: str = "float32",
    exact: bool | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    layers: str | None,
    channels: int = 3,
) -> Params:
    """Query parameters of /embed; layers is a granularity, channels are of the pixels.

    Raises InputError for an unusable dtype, mean or std.
    """
    if dtype not in ANSWER_DTYPES:
        raise InputError(f"unknown dtype {dtype!r}: use one of {', '.join(ANSWER_DTYPES)}")
    given = {
        "model": model,
        "pooling": pooling,
        "layers": layers,
        "dtype": dtype,
        "exact": None if exact is None else str(bool(exact)).lower(),
        "mean": _per_band("mean", mean, channels),
        "std": _per_band("std", std, channels),
    }
    return {name: value for name, value in given.items() if value is not None}


def flux_params(given: Mapping[str, Any]) -> Params:
    """Query parameters of FITS files, as the command line spells them. None leaves one out."""
    return {name: _spelt(name, value) for name, value in given.items() if value is not None}


def _spelt(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) or not isinstance(value, Iterable):
        return str(value)
    values = list(value)
    if name == "limits":
        pairs = values if all(isinstance(one, (tuple, list)) for one in values) else [values]
        return ",".join(":".join(map(str, pair)) for pair in pairs)
    return ",".join(map(str, values))


def _per_band(name: str, values: Sequence[float] | None, channels: int) -> str | None:
    if values is None:
        return None
    numbers = [float(value) for value in values]
    if len(numbers) != channels or not np.isfinite(numbers).all():
        many = "three" if channels == 3 else str(channels)
        raise InputError(f"{name} must be {many} finite numbers, got {list(values)}")
    if name == "std" and min(numbers) <= 0:
        raise InputError(f"std must be positive, got {list(values)}")
    return ",".join(map(repr, numbers))


def plan_pixels(
    values: ArrayLike,
    options: Options,
    *,
    layers: str | None,
    channels: int = 3,
    wire: str = "auto",
    image_size: ImageSize | None = None,
    **embed: Unpack[CommonOptions],
) -> ChunkPlan:
    """Check pixels and cut them into chunks that share their memory.

    layers: a granularity. channels: those that the model takes.
    """
    params = embed_params(layers=layers, channels=channels, **embed)
    array = pixels.as_pixels(values, channels)
    height, width = array.shape[-2:]
    if image_size is not None and (wrong := against_size(image_size, height, width)):
        raise InputError(wrong)
    remark = pixels.about_values(array[:_LOOKED_AT])
    if remark:
        warnings.warn(remark, pixels.PixelValueWarning, stacklevel=3)
    dtype = pixels.wire_dtype(array, wire)
    accept = formats.SAFETENSORS if layers else formats.NPY
    row_bytes = array[0].size * dtype.itemsize
    most = max(1, min(options.rows_per_request, MAX_CHUNK_BYTES // row_bytes))

    def chunk(start: int, stop: int) -> Chunk:
        body = formats.NpyBody(array[start:stop], dtype=dtype)
        request = Request(path="/embed", params=params, accept=accept, body=body)
        return Chunk(start=start, stop=stop, request=request)

    starts = range(0, len(array), most)
    chunks = [chunk(start, min(start + most, len(array))) for start in starts]
    unasked = None if image_size is not None else (height, width)
    return ChunkPlan(chunks=chunks, dtype=np.dtype(params["dtype"]), unasked_size=unasked)


def plan_images(
    images: Any, options: Options, *, layers: str | None = None, **embed: Unpack[ImageOptions]
) -> ChunkPlan:
    """Check images and group them into chunks; files are read when their chunk is sent.

    layers: a granularity.
    """
    given: dict[str, Any] = dict(embed)
    params = flux_params({name: given.pop(name) for name in FLUX_OPTIONS if name in given})
    if str(params.get("hdu", "")).strip().lower() == "all":
        raise ConfigurationError(
            "hdu='all' makes several rows of a file, and an image is one here: name an HDU, or use "
            "`vim-embed embed --hdu all`"
        )
    params = embed_params(layers=layers, **given) | params
    accept = formats.SAFETENSORS if layers else formats.NPY
    listed = pixels.as_images(images)
    sizes = [pixels.image_bytes(image) for image in listed]
    chunks = []
    for start, stop in cut(sizes, rows=options.rows_per_request):
        request = Request(path="/embed", params=params, accept=accept, images=listed[start:stop])
        chunks.append(Chunk(start=start, stop=stop, request=request))
    return ChunkPlan(chunks=chunks, dtype=np.dtype(params["dtype"]))


def cut(sizes: Iterable[int], *, rows: int) -> list[tuple[int, int]]:
    """Ranges of consecutive items: at most `rows`, and MAX_CHUNK_BYTES unless one item has more."""
    ranges: list[tuple[int, int]] = []
    start = total = stop = 0
    for stop, size in enumerate(sizes):
        if stop > start and (stop - start == rows or total + size > MAX_CHUNK_BYTES):
            ranges.append((start, stop))
            start, total = stop, 0
        total += size
    ranges.append((start, stop + 1))
    return ranges


def model_path(name: str) -> str:
    """The route of one model."""
    return f"/models/{quote(name)}"


def read_answer(response: httpx.Response) -> Answer:
    """The arrays of a successful answer of /embed. Raises BadAnswerError."""
    kind = response.headers.get("content-type", "").split(";")[0].strip()
    if kind == formats.NPY:
        arrays = {"embedding": formats.parse_npy(response.content)}
    elif kind == formats.SAFETENSORS:
        arrays = _in_order(*formats.parse_safetensors(response.content))
    else:
        raise BadAnswerError(f"the answer of {response.url} is {kind or 'untyped'}, not an array")
    return Answer(
        arrays=arrays,
        provenance=Provenance.from_headers(response.headers),
        request_id=response.headers.get("x-request-id", ""),
        timing=parse_server_timing(response.headers.get("server-timing", "")),
        native_size=_native_size(response.headers.get("x-vim-embed-native-size", "")),
    )


def _native_size(header: str) -> int:
    return int(header) if header.isdecimal() else 0


def _in_order(tensors: dict[str, Array], metadata: Mapping[str, str]) -> dict[str, Array]:
    try:
        names = json.loads(metadata["layers"])
        return {name: tensors[name] for name in names}
    except (KeyError, ValueError, TypeError):
        raise BadAnswerError("the answer does not name its layers") from None


def read_json(response: httpx.Response, keys: Sequence[str]) -> Any:
    """The JSON object of a successful answer. Raises BadAnswerError where it lacks a key."""
    try:
        body = response.json()
        if not all(key in body for key in keys):
            raise ValueError("another object was expected")
    except (ValueError, TypeError) as error:
        raise BadAnswerError(
            f"{response.url} answered something else ({error}): is it a vim-embed service?"
        ) from None
    return body


def parse_server_timing(header: str) -> dict[str, float]:
    """Milliseconds by name: `queue;dur=1.5, forward;dur=20` gives {"queue": 1.5, "forward": 20}."""
    timing = {}
    for entry in header.split(","):
        name, _, parameters = entry.strip().partition(";")
        for parameter in parameters.split(";"):
            key, _, value = parameter.strip().partition("=")
            if key == "dur":
                with suppress(ValueError):
                    timing[name] = float(value)
    return timing
