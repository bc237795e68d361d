"""Answers of `/embed`: format by `Accept`, provenance in headers and metadata."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any
from urllib.parse import urlencode

import numpy as np
from numpy.typing import NDArray
from starlette.responses import Response

from vim_embed import __version__
from vim_embed.engines.interface import Outputs
from vim_embed.errors import InvalidInput, NotAcceptable
from vim_embed.http.formats.arrays import base64_array, npy_bytes, safetensors_bytes
from vim_embed.http.formats.fits_query import FitsQuery
from vim_embed.http.formats.json_numbers import number_pieces
from vim_embed.http.formats.parsing import JSON, NPY, SAFETENSORS
from vim_embed.types.model_info import EmbedOptions, ModelInfo
from vim_embed.types.pixels import PixelArray

_FORMATS = (NPY, JSON, SAFETENSORS)
_HEADER_PREFIX = "X-Vim-Embed-"
_KNOWN = 256  # requests of one kind come again and again
# Of memory for a number: its text in pieces and in one, of up to 24 characters, and itself.
_JSON_VALUE_BYTES = 64


@lru_cache(_KNOWN)
def choose_format(accept: str | None, body_type: str, *, layers: bool) -> str:
    """The answer's media type. Raises NotAcceptable."""
    default = body_type if body_type in _FORMATS else NPY
    if layers and default == NPY:
        default = SAFETENSORS
    possible = [f for f in (default, *_FORMATS) if not (layers and f == NPY)]
    for wanted in _by_preference(accept or "*/*"):
        for offered in possible:
            if wanted in (offered, "*/*", "application/*"):
                return offered
    raise NotAcceptable(
        f"Accept {accept!r} admits none of {', '.join(sorted(set(possible)))}"
        + ("; layers are several arrays, which npy cannot hold" if layers else "")
    )


def with_size(
    origin: Mapping[str, str], info: ModelInfo, options: EmbedOptions, pixels: PixelArray
) -> Mapping[str, str]:
    """What the provenance says of the size of the images.

    Of tokens, how the patches among them lie: `grid` is rows,columns. Of images of another size
    than the model's, what that is: `native_size`, in pixels.
    """
    height, width = pixels.shape[-2:]
    native = info.preprocessing.image_size
    if options.pooling == "tokens":
        rows, columns = info.grid(height, width)
        origin = {**origin, "grid": f"{rows},{columns}"}
    if (height, width) != (native, native):
        origin = {**origin, "native_size": str(native)}
    return origin


def with_fits(
    origin: Mapping[str, str], query: FitsQuery, files: Sequence[int] = ()
) -> Mapping[str, str]:
    """The provenance of rows of FITS files says with which options these were read, in ASCII.

    files: how many rows each file has, where that may be several.
    """
    given = {name: getattr(query, name) for name in query.given()}
    if not given:
        return origin
    spelt = {name: str(v).lower() if isinstance(v, bool) else v for name, v in given.items()}
    rows = {"fits_rows": ",".join(map(str, files))} if files else {}
    return {**origin, "fits": urlencode(spelt, safe=":,"), **rows}


@lru_cache(_KNOWN)
def provenance(info: ModelInfo, options: EmbedOptions) -> Mapping[str, str]:
    """What a scientist needs to know of an embedding, as strings."""
    spec = info.preprocessing
    if options.mean is not None or options.std is not None:
        spec = spec.normalised_with(options.mean, options.std)
    origin = {
        "model": info.name,
        "revision": info.weights.revision or "",
        "weights_digest": info.weights.digest,
        "family": info.family,
        "preprocessing_digest": spec.digest,
        "pooling": options.pooling,
        "dtype": info.dtype,
        "backend": info.backend,
        "device": info.device,
        "exact": str(options.exact).lower(),
        "exact_rows": str(info.exact_rows) if options.exact else "",
        "random_weights": str(info.weights.random).lower(),
        "version": __version__,
    }
    if info.certificate is not None and options.layers is None:
        statement = info.certificate.statement(options.pooling)
        if statement:  # in ASCII, as headers are
            origin["certificate"] = statement.replace("±", "+/-")
    return MappingProxyType(origin)


def render(
    outputs: Outputs,
    kind: str,
    *,
    origin: Mapping[str, str],
    dtype: str,
    encoding: str,
    layers: bool,
    timing: str,
) -> Response:
    """The answer itself. dtype: "float32" or "float16"; encoding: of JSON arrays."""
    arrays = {name: narrowed(array, np.dtype(dtype)) for name, array in outputs.items()}
    headers = {**provenance_headers(origin), "Server-Timing": timing}
    if kind == NPY:
        content = npy_bytes(next(iter(arrays.values())))
    elif kind == SAFETENSORS:
        content = safetensors_bytes(arrays, origin)
    else:
        content = b"".join(_json_pieces(arrays, encoding, origin, layers=layers))
    return Response(content, media_type=kind, headers=headers)


def rendering_bytes(outputs: Outputs, kind: str, dtype: str) -> int:
    """Memory that `render` and the outputs take together, at most."""
    return number_bytes(kind, dtype) * sum(array.size for array in outputs.values())


def number_bytes(kind: str, dtype: str) -> int:
    """Memory that one number takes, of an output and of the answer in the making."""
    return {
        NPY: 8,  # the output and the answer, with float16 between them or none
        JSON: _JSON_VALUE_BYTES,
        SAFETENSORS: 4 + 3 * np.dtype(dtype).itemsize,
    }[kind]


def _json_pieces(
    arrays: Outputs, encoding: str, origin: Mapping[str, str], *, layers: bool
) -> Iterator[bytes]:
    """The bytes of `json.dumps({"layers": {name: lists}, "provenance": …})`, or without layers."""
    yield b'{"layers": {' if layers else b"{"
    for number, (name, array) in enumerate(arrays.items()):
        yield f"{', ' if number else ''}{json.dumps(name)}: ".encode()
        if encoding == "float":
            yield from (piece.encode() for piece in number_pieces(array))
        else:
            yield json.dumps(base64_array(array)).encode()
    yield f'{"}" if layers else ""}, "provenance": {json.dumps(dict(origin))}}}'.encode()


def narrowed(array: NDArray[np.float32], dtype: np.dtype[Any]) -> NDArray[Any]:
    """The array in `dtype`. Raises InvalidInput where its values do not fit."""
    with np.errstate(over="ignore"):
        narrow = array.astype(dtype, copy=False)
    if narrow is not array and not np.isfinite(narrow).all():
        raise InvalidInput(f"values are too large for {dtype.name}: ask for float32")
    return narrow


def provenance_headers(origin: Mapping[str, str]) -> dict[str, str]:
    """`weights_digest` becomes `X-Vim-Embed-Weights-Digest`, and so on."""
    return {_header_name(key): value for key, value in origin.items()}


@lru_cache(_KNOWN)
def _header_name(key: str) -> str:
    return _HEADER_PREFIX + key.replace("_", "-").title()


def _by_preference(accept: str) -> list[str]:
    ranked: list[tuple[float, int, str]] = []
    for place, part in enumerate(accept.lower().split(",")):
        kind, _, parameters = part.strip().partition(";")
        quality = 1.0
        for parameter in parameters.split(";"):
            key, _, value = parameter.strip().partition("=")
            if key == "q":
                quality = _number(value)
        if quality > 0:
            ranked.append((-quality, place, kind.strip()))
    return [kind for _, _, kind in sorted(ranked)]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
