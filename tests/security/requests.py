"""Requests of every kind, valid and mutated, from one `Random`."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any
from urllib.parse import quote, urlencode

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import save

from security import mutate
from security.processes import MIB
from support.serving import npy
from vim_embed.http.formats.arrays import base64_array
from vim_embed_client.compression import CompressedBody

MAX_BODY = 2 * MIB
_WORDS = (
    "",
    "0",
    "1",
    "-1",
    "nan",
    "inf",
    "1e999",
    "1e-9",
    "true",
    "null",
    "é",
    "\x00",
    "x" * 3000,
    "../..",
    "%s%s%n",
    "mean",
    "cls",
    "patch-mean",
    "blocks",
    "all",
    "float16",
    "base64",
    "0.5,0.5,0.5",
    "1,2",
    "nan,nan,nan",
    "1e-300,1,1",
    "arithmetic",
    "arithmetic/versions/1",
    "\ud83d\ude00",
    "[]",
    "' OR 1=1",
)
_PARAMETERS = (
    "model",
    "pooling",
    "layers",
    "dtype",
    "encoding",
    "exact",
    "timeout",
    "mean",
    "std",
    "survey",
    "bands",
    "hdu",
    "limits",
    "stretch",
    "crop",
    "x",
)
_TYPES = (
    "application/x-npy",
    "application/json",
    "application/vnd.safetensors",
    "image/png",
    "image/jpeg",
    "image/tiff",
    "image/x",
    "multipart/form-data",
    "multipart/form-data; boundary=boundary",
    "multipart/form-data; boundary=",
    "application/octet-stream",
    "text/plain",
    "",
    "image/",
    "é/ü",
    "application/json; charset=utf-16",
    "a" * 2000,
)
_ACCEPTS = (
    "*/*",
    "application/json",
    "application/x-npy",
    "application/vnd.safetensors",
    "text/html",
    "",
    ";;",
    "application/json;q=0",
    "application/json;q=x, */*;q=-1",
    "," * 1000,
    "image/*",
    "é",
    "*/*;q=nan",
)


@dataclass
class Request:
    """One request. kind: how its body was made; intact: the body was not mutated."""

    kind: str
    method: str
    path: str
    headers: dict[str, str]
    content: bytes = b""
    intact: bool = False


def pixels(random: Random) -> NDArray[Any]:
    """A small valid batch."""
    shape = (random.choice((1, 1, 2, 5)), 3, 8, random.choice((8, 8, 8, 5)))
    values = np.frombuffer(random.randbytes(int(np.prod(shape))), np.uint8).reshape(shape)
    return values if random.random() < 0.5 else (values / 255).astype(np.float32)


def image(random: Random, form: str) -> bytes:
    """A small valid image file."""
    mode = random.choice(("RGB", "RGB", "L", "P", "1", "CMYK") if form == "TIFF" else ("RGB", "L"))
    picture = Image.frombytes("RGB", (12, 9), random.randbytes(12 * 9 * 3)).convert(mode)
    options: dict[str, Any] = {}
    if form == "TIFF":
        options["compression"] = random.choice((None, "tiff_lzw", "tiff_adobe_deflate", "packbits"))
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def npy_request(random: Random) -> Request:
    content = npy(pixels(random))
    content = _maybe(random, content, mutate.mutate_npy)
    headers = {"Content-Type": _TYPES[0]}
    if random.random() < 0.2:
        headers["Content-Encoding"] = random.choice(("zstd", "gzip", "deflate", "x-gzip", "br"))
        content = _maybe(random, coded(headers["Content-Encoding"], content), None)
    return Request("npy", "POST", "/embed", headers, content)


def coded(coding: str, content: bytes) -> bytes:
    """The content compressed, if the service knows the coding."""
    if coding == "deflate":
        return zlib.compress(content)
    if coding in ("gzip", "x-gzip"):
        return gzip.compress(content)
    return (
        b"".join(CompressedBody([content], "zstd", media_type="")) if coding == "zstd" else content
    )


def decompressed_bytes(request: Request) -> int:
    """That a compressed body becomes, as far as it is read: the limit, at most."""
    return MAX_BODY if "Content-Encoding" in request.headers else 0


def safetensors_request(random: Random) -> Request:
    content = _maybe(
        random, bytes(save({"pixel_values": pixels(random)})), mutate.mutate_safetensors
    )
    return Request("safetensors", "POST", "/embed", {"Content-Type": _TYPES[2]}, content)


def json_request(random: Random) -> Request:
    array = pixels(random)
    tree: Any = {"inputs": array.tolist(), "dtype": array.dtype.name}
    if random.random() < 0.5:
        tree = {"inputs": base64_array(array)}
    if random.random() < 0.8:
        tree = mutate.mutate_tree(random, tree)
    content = _maybe(random, mutate.to_json(random, tree), None)
    return Request("json", "POST", "/embed", {"Content-Type": _TYPES[1]}, content)


def image_request(random: Random) -> Request:
    form, edit = random.choice(
        (
            ("PNG", mutate.mutate_png),
            ("JPEG", mutate.mutate_jpeg),
            ("TIFF", mutate.mutate_tiff),
            *((name, mutate.mutate_bytes) for name in ("WEBP", "BMP", "GIF", "PPM")),
        )
    )
    content = _maybe(random, image(random, form), edit)
    return Request(f"image {form}", "POST", "/embed", {"Content-Type": "image/png"}, content)


def fits_request(random: Random) -> Request:
    """A FITS file of one or several images, compressed or not, with the parameters it has."""
    fluxes = np.frombuffer(random.randbytes(3 * 9 * 12), np.uint8).reshape(3, 9, 12)
    shape = random.choice(((9, 12), (3, 9, 12), (1, 3, 9, 12)))
    array = np.resize(fluxes, shape).astype(random.choice(("u1", "i2", "f4", "f8")))
    hdus = [
        fits.ImageHDU(array, name="SCI"),
        *([_tiles(random, array)] if random.random() < 0.4 else []),
    ]
    file = io.BytesIO()
    summed = random.random() < 0.2
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(file, checksum=summed)
    content = _maybe(random, file.getvalue(), mutate.mutate_fits)
    if random.random() < 0.2:
        content = _maybe(random, gzip.compress(content), None)
    query = {"bands": "2,1,0"} if len(shape) > 2 else {}
    query |= random.choice((
        {}, {}, {"blank": "sky"}, {"hdu": "TILES"}, {"stretch": "zscale"}, {"stretch": "lupton"},
        {"stretch": "asinh", "softening": "0.1"}, {"crop": "5", "flip": "true"},
        {"limits": "0:200"}, {"hdu": "all"}, {"stack": "true"},
    ))  # fmt: skip
    headers = {"Content-Type": random.choice(("application/fits", "image/fits"))}
    return Request("fits", "POST", f"/embed?{urlencode(query)}", headers, content)


def _tiles(random: Random, array: NDArray[Any]) -> fits.CompImageHDU:
    """The same image compressed, of one kind or another."""
    kinds = ["RICE_1", "GZIP_1", "GZIP_2", "HCOMPRESS_1", "PLIO_1"]
    kind = random.choice(kinds[: 5 if array.dtype.kind in "iu" else 4])
    if kind == "PLIO_1":  # for masks
        array = (array > 128).astype(np.int16)
    return fits.CompImageHDU(
        array, name="TILES", compression_type=kind, dither_seed=1,
        tile_shape=(*(1,) * (array.ndim - 2), *array.shape[-2:]),
        quantize_method=random.choice((-1, 1, 2)),
    )  # fmt: skip


def form_request(random: Random) -> Request:
    parts = []
    for name in range(random.choice((1, 2, 3))):
        head = f'--boundary\r\nContent-Disposition: form-data; name="i"; filename="{name}.png"\r\n'
        parts.append(
            head.encode() + b"Content-Type: image/png\r\n\r\n" + image(random, "PNG") + b"\r\n"
        )
    whole = b"".join([*parts, b"--boundary--\r\n"])
    content = _maybe(random, whole, mutate.mutate_form)
    return Request(
        "form", "POST", "/embed", {"Content-Type": _TYPES[8]}, content, intact=content == whole
    )


def v2_request(random: Random) -> Request:
    array = pixels(random)
    names = {"uint8": "UINT8", "float32": "FP32"}
    tensor: dict[str, Any] = {
        "name": "pixel_values", "shape": list(array.shape), "datatype": names[array.dtype.name],
    }  # fmt: skip
    tree: Any = {
        "id": "7",
        "inputs": [tensor],
        "outputs": [{"name": "embedding"}],
        "parameters": {},
    }
    raw = b""
    if random.random() < 0.6:
        raw = array.tobytes()
        tensor["parameters"] = {"binary_data_size": len(raw)}
    else:
        tensor["data"] = array.reshape(-1).tolist()
    if random.random() < 0.5:
        tree["outputs"][0]["parameters"] = {"binary_data": True}
    if random.random() < 0.3:
        tree["parameters"] = {random.choice((*_PARAMETERS, "priority")): random.choice(_WORDS)}
    if random.random() < 0.7:
        tree = mutate.mutate_tree(random, tree)
    text = mutate.to_json(random, tree)
    headers = {"Content-Type": "application/octet-stream"}
    length = (
        str(len(text)) if random.random() < 0.9 else random.choice(("0", "-1", "9" * 30, "x", ""))
    )
    if raw or random.random() < 0.2:
        headers["Inference-Header-Content-Length"] = length
    content = _maybe(random, text + raw, None)
    if random.random() < 0.2:
        headers["Content-Encoding"] = random.choice(("zstd", "gzip", "deflate", "br", "identity"))
        content = coded(headers["Content-Encoding"], content)
        content = _maybe(random, content, None)
    path = random.choice(("/v2/models/arithmetic/infer", "/v2/models/arithmetic/versions/1/infer"))
    return Request("v2", "POST", path, headers, content)


def bomb_request(random: Random) -> Request:
    """A small body that decompresses to far more than the limit."""
    content = gzip.compress(bytes(random.choice((MAX_BODY - 1, MAX_BODY + 1, 20 * MAX_BODY))), 1)
    headers = {"Content-Encoding": "gzip", "Inference-Header-Content-Length": "0"}
    return Request("bomb", "POST", "/v2/models/arithmetic/infer", headers, content)


def heavy_request(random: Random) -> Request:
    """A body of up to a MiB that is work or memory, not content: JSON of any shape, images with
    crowds of parts, crowds of empty members.
    """
    kind = random.choice(("json", "v2", "image", "image", "members"))
    if kind == "image":
        form = random.choice(("PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF", "PPM"))
        content = mutate.heavy_image(random, image(random, form), MIB)
        return Request(f"heavy {form}", "POST", "/embed", {"Content-Type": "image/png"}, content)
    if kind == "members":
        coding = random.choice(("zstd", "gzip"))
        empty = coded(coding, b"")
        if coding == "zstd" and random.random() < 0.5:
            empty = bytes.fromhex("502a4d1800000000")  # a skippable frame
        content = mutate.many_members(random, coded(coding, npy(pixels(random))), empty)
        headers = {"Content-Type": _TYPES[0], "Content-Encoding": coding}
        return Request("heavy members", "POST", "/embed", headers, content)
    content = mutate.json_of_any_shape(random, MIB)
    if kind == "json":
        return Request("heavy json", "POST", "/embed", {"Content-Type": _TYPES[1]}, content)
    return Request("heavy v2", "POST", "/v2/models/arithmetic/infer", {}, content)


def route_request(random: Random) -> Request:
    """Other routes, with names that are none."""
    path = random.choice(
        (
            "/",
            "/status",
            "/metrics",
            "/health/live",
            "/health/ready",
            "/models",
            "/models/{}",
            "/models/{}/layers",
            "/models/{}/check",
            "/models/{}/load",
            "/page/{}",
            "/faults",
            "/{}",
            "/v2",
            "/v2/{}",
            "/v2/models/{}",
            "/v2/models/{}/ready",
            "/v2/models/{}/config",
            "/v2/models/stats",
            "/v2/models/{}/versions/{}/stats",
            "/v2/models/{}/infer",
            "/v2/health/{}",
            "/docs",
            "/embed",
        )
    )
    for _ in range(path.count("{}")):
        word = random.choice((*_WORDS[:-3], "page.css", "arithmetic", "arithmetic"))
        path = path.replace("{}", quote(word, safe=random.choice(("", "/."))), 1)
    method = random.choice(
        ("GET", "GET", "GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "BREW")
    )
    content = random.randbytes(random.randrange(40)) if method in ("POST", "PUT") else b""
    return Request("route", method, path, {}, content)


_MAKERS: tuple[Callable[[Random], Request], ...] = (
    npy_request, safetensors_request, json_request, image_request, image_request, form_request,
    fits_request,
    v2_request, v2_request, route_request,
)  # fmt: skip


def make(seed: int, number: int) -> Request:
    """Input `number` of a seed: a request, its query and its headers, valid or not."""
    random = Random(f"{seed}:{number}")
    dice = random.random()
    if dice < 0.002:
        request = bomb_request(random)
    else:
        request = heavy_request(random) if dice < 0.1 else random.choice(_MAKERS)(random)
    if random.random() < 0.3:
        names = [random.choice(_PARAMETERS) for _ in range(random.choice((1, 1, 2, 3)))]
        pairs = [(name, random.choice(_WORDS).encode("utf-8", "surrogatepass")) for name in names]
        request.path += ("&" if "?" in request.path else "?") + urlencode(pairs)
    if random.random() < 0.3:
        request.headers["Accept"] = random.choice(_ACCEPTS)
    if random.random() < 0.05:
        request.headers["Content-Type"] = random.choice(_TYPES)
    if random.random() < 0.05:
        name = random.choice(
            ("X-Request-ID", "traceparent", "Authorization", "Accept-Encoding", "Cookie")
        )
        request.headers[name] = random.choice(
            ("x" * 2000, "gzip", "00-0-0-0", "é\xff", "Bearer é", "")
        )
    return request


def _maybe(random: Random, content: bytes, edit: Callable[[Random, bytes], bytes] | None) -> bytes:
    """The content as it is, mutated by its structure, or by its bytes."""
    dice = random.random()
    if dice < 0.2:
        return content
    if edit is not None and dice < 0.75:
        return edit(random, content)
    return mutate.mutate_bytes(random, content) if edit is not None or dice < 0.4 else content
