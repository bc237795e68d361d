"""What a right answer is, from readers that are not the service's own.

A 200 of an embedding route must hold what the arithmetic engine gives for the pixels that an
independent reader finds in the body; anything else must be in the error shape, with a documented
status and code.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import sys
import warnings
import zlib
from email.message import Message
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from safetensors.numpy import load

from vim_embed.engines.arithmetic import ArithmeticEngine
from vim_embed.errors import ERRORS
from vim_embed.types.model_info import EmbedOptions
from vim_embed_client.bulk.sources.content import Content
from vim_embed_client.bulk.sources.options import ReadOptions
from vim_embed_client.bulk.sources.reader import Entry, Item
from vim_embed_client.bulk.sources.registry import _open_member as open_member
from vim_embed_pixels import texts
from vim_embed_pixels.surveys import survey_stretch

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

if TYPE_CHECKING:
    from security.requests import Request

_CODES = {(error.status, error.code) for error in ERRORS if error.code != "internal_error"}
_STATUSES = {status for status, _ in _CODES}
_NAMES = {"UINT8": np.uint8, "FP32": np.float32, "FP16": np.float16}
_Array = NDArray[Any]
_FITS = (b"SIMPLE  =", b"\x1f\x8b")


def check_answer(request: Request, status: int, headers: Message, body: bytes) -> str | None:
    """What is wrong with an answer, or None."""
    if headers.get("X-Request-ID") is None:
        return f"{status} without X-Request-ID: {body[:200]!r}"
    if b"Traceback (most recent" in body:
        return "a traceback was sent"
    if status != 200:
        return _check_error(request, status, headers, body)
    path = urlsplit(request.path).path
    if path == "/embed" or path.endswith("/infer"):
        return _check_embedding(request, headers, body)
    return None


def _check_error(request: Request, status: int, headers: Message, body: bytes) -> str | None:
    if request.method == "HEAD" or (status in (204, 307) and not body):
        return None
    try:
        content = json.loads(body)
    except ValueError:
        return f"{status} is not JSON: {body[:200]!r}"
    unparsed = b"Invalid HTTP request" in body  # refused before anything read its path
    if urlsplit(request.path).path.startswith("/v2") and not unparsed:
        ok = set(content) == {"error"} and isinstance(content["error"], str)
        return None if ok and status in _STATUSES else f"{status}: {content}"
    error = content.get("error") if isinstance(content, dict) else None
    if not isinstance(error, dict) or not {"code", "message", "request_id"} <= set(error):
        return f"{status} is not in the error shape: {body[:200]!r}"
    if set(error) - {"code", "message", "request_id", "detail"}:
        return f"more in the error than its shape has: {error}"
    if (status, error["code"]) not in _CODES:
        return f"{status} {error['code']} is not documented: {error['message'][:300]}"
    if not error["message"] or error["request_id"] != headers["X-Request-ID"]:
        return f"no message, or another request's id: {error}"
    return None


def _check_embedding(request: Request, headers: Message, body: bytes) -> str | None:
    found = _embedding(headers, body)
    if found is None:
        return f"200 of an unknown form: {headers.get('Content-Type')} {body[:100]!r}"
    if request.kind == "form" and not request.intact:  # lenient readers differ on these
        fine = found.ndim == 2 and found.shape[1] == ArithmeticEngine.DIM - 1
        return None if fine and np.isfinite(found).all() else f"no embedding: {found.shape}"
    try:
        pixels = _pixels(request)
    except Exception as error:
        return f"200 for a body that cannot be read: {type(error).__name__}: {error}"
    expected = _expected(request, pixels)
    close = found.shape == expected.shape and np.allclose(
        found.astype(np.float64), expected, rtol=2e-3, atol=1e-4, equal_nan=True
    )
    return None if close else f"wrong rows: {found.tolist()[:1]} and not {expected.tolist()[:1]}"


def _expected(request: Request, pixels: _Array) -> _Array:
    if pixels.ndim == 3:
        pixels = pixels[None]
    if pixels.dtype == np.float64:
        pixels = pixels.astype(np.float32)
    engine = ArithmeticEngine()
    embedding = engine.run(engine.stage("arithmetic", [pixels], EmbedOptions()))["embedding"]
    return embedding[:, :-1]  # the last column is the pooling's


def _embedding(headers: Message, body: bytes) -> _Array | None:
    """The embedding of an answer, of layers the last one, without the pooling's column."""
    kind = (headers.get("Content-Type") or "").partition(";")[0]
    if headers.get("Content-Encoding"):
        body = zlib.decompress(body, 32 + zlib.MAX_WBITS)
    length = headers.get("Inference-Header-Content-Length")
    array: _Array | None = None
    if kind == "application/x-npy":
        array = np.load(io.BytesIO(body), allow_pickle=False)
    elif kind == "application/vnd.safetensors":
        tensors = load(body)
        array = tensors.get("embedding", tensors.get("last_hidden_state"))
    elif kind == "application/octet-stream" and length:
        array = _v2_output(json.loads(body[: int(length)]), body[int(length) :])
    elif kind == "application/json":
        content = json.loads(body)
        array = _v2_output(content, b"") if "outputs" in content else _json_output(content)
    return None if array is None else array[:, :-1]


def _json_output(content: Any) -> _Array:
    value = content["layers"]["last_hidden_state"] if "layers" in content else content["embedding"]
    if isinstance(value, dict):
        raw = base64.b64decode(value["base64"])
        return np.frombuffer(raw, value["dtype"]).reshape(value["shape"])
    return np.array(value)


def _v2_output(content: Any, raw: bytes) -> _Array | None:
    found, place = None, 0
    for output in content["outputs"]:
        dtype = np.dtype(_NAMES[output["datatype"]])
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:
            values = np.array(output["data"], dtype)
        else:
            values, place = np.frombuffer(raw[place : place + size], dtype), place + size
        if output["name"] in ("embedding", "last_hidden_state"):
            found = values.reshape(output["shape"])
    return found


def _pixels(request: Request) -> _Array:
    """The pixels of a body, read independently of the service."""
    if not request.path.startswith("/embed"):
        return _v2_pixels(request)
    kind = request.headers["Content-Type"].partition(";")[0]
    if kind == "application/x-npy":
        return np.array(np.load(io.BytesIO(_plain(request)), allow_pickle=False))
    if kind == "application/vnd.safetensors":
        return np.array(load(request.content)["pixel_values"])
    if kind == "application/json":
        return _json_pixels(json.loads(request.content))
    if kind == "multipart/form-data":
        return np.stack([_image(part) for part in _parts(request.content)])
    if kind in ("application/fits", "image/fits") or request.content.startswith(_FITS):
        return _fits(request)
    return _image(request.content)[None]


def _fits(request: Request) -> _Array:
    """As the client reads a file of its disk; with hdu=all or stack=true, a row of each image."""
    query = dict(parse_qsl(urlsplit(request.path).query, encoding="utf-8", errors="replace"))
    given = {
        name: texts.PARSERS.get(name, str)(query[name])
        for name in ("survey", "bands", "limits", "blank", "stretch", "hdu") if name in query
    }  # fmt: skip
    softening = float(query["softening"]) if "softening" in query else None
    hdus, kind = given.pop("hdu", None), given.pop("stretch", None)
    stretch = survey_stretch(given.pop("survey", None), kind=kind, softening=softening, **given)
    options = ReadOptions(
        stretch=stretch, hdus=hdus, crop=int(query["crop"]) if "crop" in query else None,
        flip=_yes(query.get("flip")), stack=_yes(query.get("stack")),
    )  # fmt: skip
    reader = open_member(Content("a.fits", data=request.content), options)
    assert reader is not None
    rows, every = reader.read(0), hdus == ("all",)
    if not (options.stack or every):
        return _small(next(rows))[None]
    # damage behind the HDU that is meant is for the client to tell
    asked = [row for row in rows if isinstance(row, Item) or (every and row.fault)]
    return np.stack([_small(row) for row in asked])


def _yes(word: str | None) -> bool:
    return (word or "").lower() in ("1", "true", "t", "yes", "y", "on")


def _small(row: Entry) -> _Array:
    assert isinstance(row, Item), row
    assert callable(row.data)
    shown = Image.fromarray(np.ascontiguousarray(row.data().transpose(1, 2, 0)))
    small = shown.resize((8, 8), Image.Resampling.BICUBIC)
    return np.asarray(small, np.uint8).transpose(2, 0, 1)


def _plain(request: Request) -> bytes:
    """The body without its coding."""
    coding = request.headers.get("Content-Encoding")
    if coding == "deflate":
        return zlib.decompress(request.content)
    if coding in ("gzip", "x-gzip"):
        return gzip.decompress(request.content)
    return bytes(zstd.decompress(request.content)) if coding == "zstd" else request.content


def _json_pixels(content: Any) -> _Array:
    inputs = content["inputs"]
    if isinstance(inputs, dict):
        raw = base64.b64decode(inputs["base64"], validate=True)
        return np.frombuffer(raw, inputs["dtype"]).reshape(inputs["shape"])
    return np.array(inputs, content.get("dtype", "float32"))


def _v2_pixels(request: Request) -> _Array:
    body = _plain(request)
    length = request.headers.get("Inference-Header-Content-Length")
    if length == "0":
        return np.frombuffer(body, np.float32).reshape(1, 3, 8, 8)
    split = len(body) if length is None else int(length)
    (tensor,) = json.loads(body[:split])["inputs"]
    dtype, shape = _NAMES[tensor["datatype"]], tensor["shape"]
    if tensor.get("data") is not None:
        return np.array(tensor["data"], dtype).reshape(shape)
    return np.frombuffer(body[split:], dtype).reshape(shape)


def _parts(body: bytes) -> list[bytes]:
    """The files of a multipart body: what follows the blank line of each part that has a name."""
    parts = body.replace(b"\r\n--boundary", b"\0SPLIT").split(b"\0SPLIT")
    cut = [part.partition(b"\r\n\r\n") for part in parts]
    return [content for head, _, content in cut if b"filename" in head]


def _image(data: bytes) -> _Array:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        picture: Image.Image = Image.open(io.BytesIO(data))
        if picture.getexif().get(0x0112, 1) != 1:
            picture = ImageOps.exif_transpose(picture)
        rgb = picture.convert("RGB").resize((8, 8), Image.Resampling.BICUBIC)
    return np.asarray(rgb, np.uint8).transpose(2, 0, 1)
