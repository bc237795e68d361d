"""Every kind of bad input: its status, its code, a message that names the fix; and the server is
fine afterwards."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from security.raw_http import one_answer
from support.serving import NPY, from_npy, npy, running
from vim_embed.engines.arithmetic import ArithmeticEngine
from vim_embed.http.app import create_app
from vim_embed.http.formats import json_bodies
from vim_embed.settings import Settings

LIMIT = 200_000
GOOD = np.random.default_rng(1).integers(0, 256, (2, 3, 8, 8), dtype=np.uint8)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    settings = Settings(
        max_body_bytes=LIMIT,
        max_rows=64,
        max_image_pixels=1_000_000,
        max_image_size=64,
        body_timeout=1,
    )
    with running(create_app(settings, ArithmeticEngine())) as url:
        yield url


@dataclass(frozen=True)
class Bad:
    """One bad request, and what must come back."""

    name: str
    status: int
    code: str
    says: str
    content: bytes = npy(GOOD)
    headers: dict[str, str] = field(default_factory=lambda: dict(NPY))
    query: str = ""


def _png_claiming(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    bomb = chunk(b"IDAT", zlib.compress(b"\0" * 100_000)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + bomb


def _png(mode: str, size: tuple[int, int] = (10, 10)) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, "PNG")
    return file.getvalue()


def _object_array() -> bytes:
    class Explosive:
        def __reduce__(self) -> tuple[Any, ...]:
            return (exec, ("raise SystemExit('unpickled')",))

    array = np.empty(1, dtype=object)
    array[0] = Explosive()
    file = io.BytesIO()
    np.lib.format.write_array(file, array, allow_pickle=True)
    assert b"unpickled" in file.getvalue()
    with pytest.raises(SystemExit):
        pickle.loads(file.getvalue()[file.getvalue().index(b"\x80") :])
    return file.getvalue()


def _npy_header(shape: tuple[int, ...], dtype: object) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": dtype, "fortran_order": False, "shape": shape}
    )
    return file.getvalue()


def _safetensors(name: str, dtype: type = np.uint8) -> bytes:
    from safetensors.numpy import save

    return bytes(save({name: GOOD.astype(dtype)}))


def _json(content: object) -> bytes:
    return json.dumps(content).encode()


def _form(data: bytes) -> tuple[bytes, dict[str, str]]:
    request = httpx.Request("POST", "http://x", files={"image": ("galaxy.png", data, "image/png")})
    return request.read(), {"Content-Type": request.headers["content-type"]}


FLOATS = np.zeros((2, 3, 8, 8), dtype=np.float32)
NAN, INF = FLOATS.copy(), FLOATS.copy()
NAN[1, 2, 3, 4] = np.nan
INF[0, 0, 0, 0] = np.inf
JSON = {"Content-Type": "application/json"}
PNG = {"Content-Type": "image/png"}
SAFE = {"Content-Type": "application/vnd.safetensors"}
TEXT_FORM, TEXT_FORM_HEADERS = _form(b"This is not a picture.")

BAD = [
    Bad("rank 2", 422, "invalid_input", "(B, 3, H, W)", npy(GOOD[0, 0])),
    Bad("rank 5", 422, "invalid_input", "(B, 3, H, W)", npy(GOOD[None])),
    Bad("channels", 422, "invalid_input", "3 channels", npy(GOOD[:, :2])),
    Bad("channels last", 422, "invalid_input", "transpose", npy(GOOD.transpose(0, 2, 3, 1))),
    Bad("size", 422, "invalid_input", "resize", npy(np.zeros((1, 3, 65, 8), np.uint8))),
    Bad("dtype int64", 422, "invalid_input", "uint8", npy(GOOD.astype(np.int64))),
    Bad("dtype complex", 422, "invalid_input", "uint8", npy(GOOD.astype(np.complex64))),
    Bad("dtype text", 422, "invalid_input", "uint8", npy(np.full((1, 3, 8, 8), "x"))),
    Bad("NaN", 422, "invalid_input", "rows [1]", npy(NAN)),
    Bad("Inf", 422, "invalid_input", "rows [0]", npy(INF)),
    Bad("empty batch", 422, "invalid_input", "at least one row", npy(GOOD[:0])),
    Bad("no pixels", 422, "invalid_input", "resize", npy(np.zeros((1, 3, 0, 8), np.uint8))),
    Bad("empty body", 400, "malformed_request", ".npy", b""),
    Bad("truncated npy", 400, "malformed_request", "cut short", npy(GOOD)[:-7]),
    Bad("truncated npy header", 400, "malformed_request", ".npy", npy(GOOD)[:40]),
    Bad("npy with more behind", 400, "malformed_request", "header", npy(GOOD) + b"more"),
    Bad("npy of nothing", 422, "invalid_input", "uint8", _npy_header((1, 3, 8, 8), "|V0")),
    Bad("npy of empty text", 422, "invalid_input", "uint8", _npy_header((1, 3, 8, 8), "|S0")),
    Bad("npy of dates", 422, "invalid_input", "uint8", _npy_header((0,), "<M8[s]")),
    Bad("npy of records", 422, "invalid_input", "uint8", _npy_header((0,), [("a", "<f4")])),
    Bad(
        "npy of sub-arrays", 422, "invalid_input", "uint8",
        _npy_header((0,), "<f4").replace(b"'<f4'", b"('<f4', (2,))").replace(b"        \n", b"\n"),
    ),
    Bad("side of 2^63", 400, "malformed_request", "shape", _npy_header((2**63, 0), "|u1")),
    Bad(
        "sides without end", 400, "malformed_request", "shape",
        _npy_header((2**31,) * 7 + (0,), "|u1"),
    ),
    Bad(
        "65 dimensions", 422, "invalid_input", "65 dimensions",
        _npy_header((1,) * 65, "|u1") + b"x",
    ),
    Bad("beyond float32", 422, "invalid_input", "infinite", npy(np.full((1, 3, 8, 8), 1e300))),
    Bad("object array", 422, "invalid_input", "object arrays", _object_array()),
    Bad(
        "10 GB header", 400, "malformed_request", "promises",
        _npy_header((16_000, 3, 224, 934), "|u1") + bytes(1000),
    ),
    Bad("negative shape", 400, "malformed_request", "shape", _npy_header((-1, 3, 8, 8), "|u1")),
    Bad("npy magic and noise", 400, "malformed_request", ".npy", b"\x93NUMPY\x01\x00" + bytes(90)),
    Bad(
        "npy header without end", 400, "malformed_request", ".npy",
        b"\x93NUMPY\x01\x00\x40\x00" + b"{'shape': (((((".ljust(64), NPY,
    ),
    Bad("npy of version 9", 400, "malformed_request", ".npy", b"\x93NUMPY\x09\x00" + bytes(99)),
    Bad("not JSON", 400, "malformed_request", "JSON", b"{", JSON),
    Bad("JSON list", 400, "malformed_request", "inputs", b"[1]", JSON),
    Bad("JSON text", 422, "invalid_input", "not numbers", _json({"inputs": [["a"]]}), JSON),
    Bad("JSON null", 422, "invalid_input", "not numbers", _json({"inputs": [[None]]}), JSON),
    Bad("JSON booleans", 422, "invalid_input", "not numbers", _json({"inputs": [True]}), JSON),
    Bad("JSON ragged", 422, "invalid_input", "regular", _json({"inputs": [[1], [1, 2]]}), JSON),
    Bad("JSON NaN", 422, "invalid_input", "NaN", b'{"inputs": %s}' % _json(NAN.tolist()), JSON),
    Bad(
        "JSON out of uint8", 422, "invalid_input", "0 to 255",
        _json({"inputs": [[[[256]]]], "dtype": "uint8"}), JSON,
    ),
    Bad(
        "JSON NaN as uint8", 422, "invalid_input", "NaN",
        b'{"inputs": [[[[NaN]]]], "dtype": "uint8"}', JSON,
    ),
    Bad(
        "JSON fraction as uint8", 422, "invalid_input", "0 to 255",
        _json({"inputs": [[[[1.5]]]], "dtype": "uint8"}), JSON,
    ),
    Bad("JSON deep", 400, "malformed_request", "JSON", b"[" * 50_000, JSON),
    Bad(
        "JSON of an option", 422, "invalid_input", "?pooling=cls",
        _json({"inputs": GOOD.tolist(), "pooling": "cls"}), JSON,
    ),
    Bad(
        "JSON of a misspelt dtype", 422, "invalid_input", "inputs, dtype",
        _json({"inputs": GOOD.tolist(), "dtyp": "uint8"}), JSON,
    ),
    Bad(
        "base64 of an order", 422, "invalid_input", "base64, shape, dtype",
        _json({"inputs": {"base64": "", "shape": [0], "dtype": "uint8", "order": "F"}}), JSON,
    ),
    Bad(
        "base64 of two dtypes", 400, "malformed_request", "two dtypes",
        _json({"inputs": {"base64": "", "shape": [0], "dtype": "uint8"}, "dtype": "float32"}), JSON,
    ),
    *(
        Bad(
            f"JSON number {number.decode()[:9]}", 400, "malformed_request", "64 bits",
            b'{"inputs": [[[[%s]]]]}' % number, JSON,
        )
        for number in (b"1e999", b"18446744073709551616", b"1" * 9_999, b"-1e999", b"+1", b".5")
    ),
    Bad(
        "base64 without its own dtype", 400, "malformed_request", "lacks dtype",
        _json({"inputs": {"base64": "AA==", "shape": [1]}, "dtype": "uint8"}), JSON,
    ),
    Bad("JSON of a text", 422, "invalid_input", "object of base64", _json({"inputs": "A"}), JSON),
    Bad("base64 alone", 400, "malformed_request", "shape", _json({"inputs": {"base64": ""}}), JSON),
    Bad(
        "base64 broken", 400, "malformed_request", "base64",
        _json({"inputs": {"base64": "!", "shape": [1], "dtype": "uint8"}}), JSON,
    ),
    Bad(
        "base64 short", 400, "malformed_request", "promises",
        _json({"inputs": {"base64": "AAAA", "shape": [1, 3, 8, 8], "dtype": "uint8"}}), JSON,
    ),
    Bad(
        "base64 dtype", 422, "invalid_input", "dtype",
        _json({"inputs": {"base64": "AAAA", "shape": [3], "dtype": "object"}}), JSON,
    ),
    Bad(
        "base64 of 70 dimensions", 422, "invalid_input", "70 dimensions",
        _json({"inputs": {"base64": "AAAA", "shape": [1] * 70, "dtype": "uint8"}}), JSON,
    ),
    Bad(
        "base64 of a side of 2^63", 400, "malformed_request", "shape",
        _json({"inputs": {"base64": "", "shape": [2**63, 0], "dtype": "uint8"}}), JSON,
    ),
    Bad("JSON of objects", 422, "invalid_input", "numbers", _json({"inputs": [{}] * 9_000}), JSON),
    Bad("JSON of texts", 422, "invalid_input", "numbers", _json({"inputs": ["x" * 999, ""]}), JSON),
    Bad(
        "JSON of lists", 422, "invalid_input", "(B, 3, H, W)",
        _json({"inputs": [[]] * 9_000}), JSON,
    ),
    Bad(
        "JSON lists among numbers", 422, "invalid_input", "regular",
        _json({"inputs": [1, 2, [], [3, 4]]}), JSON,
    ),
    Bad(
        "JSON nine deep", 422, "invalid_input", "deep",
        b'{"inputs": ' + b"[" * 9 + b"]" * 9 + b"}", JSON,
    ),
    Bad(
        "JSON of many keys", 400, "malformed_request", "keys",
        _json(dict.fromkeys(map(str, range(99)))), JSON,
    ),
    Bad(
        "JSON key twice", 400, "malformed_request", "twice",
        b'{"inputs": [1], "inputs": [2]}', JSON,
    ),
    Bad(
        "JSON of many values", 400, "malformed_request", "values",
        _json({"a": [0] * 20_000}), JSON,
    ),
    Bad(
        "JSON other deep", 400, "malformed_request", "deep",
        b'{"a": ' + b"[" * 99 + b"]" * 99 + b"}", JSON,
    ),
    Bad(
        "JSON in UTF-16", 400, "malformed_request", "UTF-8",
        '{"inputs": [1]}'.encode("utf-16"), JSON,
    ),
    Bad(
        "safetensors of integers", 422, "invalid_input", "I64",
        _safetensors("pixel_values", np.int64), SAFE,
    ),
    Bad(
        "safetensors header", 400, "malformed_request", "header",
        (2_000_000).to_bytes(8, "little") + b"{}".ljust(2_000), SAFE,
    ),
    Bad("not safetensors", 400, "malformed_request", "safetensors", b"x" * 100, SAFE),
    Bad("other tensor", 422, "invalid_input", "pixel_values", _safetensors("pixels"), SAFE),
    Bad("text as png", 415, "unsupported_media_type", "PNG", b"This is not a picture.", PNG),
    Bad(
        "text named .png in a form", 415, "unsupported_media_type", "galaxy.png",
        TEXT_FORM, TEXT_FORM_HEADERS,
    ),
    Bad("cut png", 400, "malformed_request", "cut short", _png("RGB", (90, 90))[:-30], PNG),
    Bad("bomb", 413, "payload_too_large", "scale it down", _png_claiming(60_000, 60_000), PNG),
    Bad("large image", 413, "payload_too_large", "scale it down", _png_claiming(2_000, 2_000), PNG),
    Bad("16-bit image", 422, "invalid_input", "8 bits", _png("I;16"), PNG),
    Bad(
        "form without boundary", 400, "malformed_request", "multipart", b"x",
        {"Content-Type": "multipart/form-data"},
    ),
    *(
        Bad(
            f"a part in {coding}", 400, "malformed_request", "send its bytes as they are",
            b'--b\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n'
            b"Content-Transfer-Encoding: %s\r\n\r\n1\r\n--b--\r\n" % coding.encode(),
            {"Content-Type": "multipart/form-data; boundary=b"},
        )
        for coding in ("base64", "Quoted-Printable")
    ),
    Bad(
        "form of lines that end with LF", 400, "malformed_request", "end with CRLF",
        b'--b\nContent-Disposition: form-data; name="a"; filename="a"\n\n1\n--b--\n',
        {"Content-Type": "multipart/form-data; boundary=b"},
    ),
    Bad(
        "form of two boundaries", 400, "malformed_request", "boundary twice",
        b'--b\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\n1\r\n--b--\r\n',
        {"Content-Type": "multipart/form-data; boundary=c; Boundary=b"},
    ),
    Bad(
        "form of another boundary", 400, "malformed_request", "the one of Content-Type",
        b'--c\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\n1\r\n--c--\r\n',
        {"Content-Type": "multipart/form-data; boundary=b"},
    ),
    Bad(
        "a file name of terminal codes", 415, "unsupported_media_type", "image 0 (\ufffd[31m)",
        b'--b\r\nContent-Disposition: form-data; name="a"; filename="\x1b[31m"\r\n\r\n1\r\n'
        b"--b--\r\n",
        {"Content-Type": "multipart/form-data; boundary=b"},
    ),
    Bad(
        "form without files", 422, "invalid_input", "no file", b"--b--\r\n",
        {"Content-Type": "multipart/form-data; boundary=b"},
    ),
    Bad(
        "form cut short", 400, "malformed_request", "cut short",
        b'--b\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\n1\r\n',
        {"Content-Type": "multipart/form-data; boundary=b"},
    ),
    Bad(
        "form of many files", 413, "payload_too_large", "64 images",
        b'--b\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\n1\r\n' * 65
        + b"--b--\r\n",
        {"Content-Type": "multipart/form-data; boundary=b"},
    ),
    Bad("no type", 415, "unsupported_media_type", "application/x-npy", headers={}),
    Bad(
        "unknown type", 415, "unsupported_media_type", "application/x-npy",
        headers={"Content-Type": "application/pickle"},
    ),
    Bad("unknown model", 404, "unknown_model", "arithmetic", query="?model=resnet"),
    Bad("unknown pooling", 422, "invalid_input", "patch-mean", query="?pooling=max"),
    Bad("unknown layers", 422, "invalid_input", "blocks", query="?layers=some"),
    Bad("unknown dtype", 422, "invalid_input", "float16", query="?dtype=int8"),
    Bad("encoding of npy", 422, "invalid_input", "Accept: application/json",
        query="?encoding=base64"),
    Bad("encoding of npy, as it is by default", 422, "invalid_input", "no effect",
        query="?encoding=float"),
    Bad(
        "encoding of safetensors", 422, "invalid_input", "Accept: application/json",
        headers={**NPY, "Accept": "application/vnd.safetensors"}, query="?encoding=base64",
    ),
    Bad("mean of floats", 422, "invalid_input", "mean would have no effect on float32",
        npy(FLOATS), query="?mean=0,0,0"),
    Bad("mean and std of floats", 422, "invalid_input", "mean and std would have no effect",
        npy(FLOATS.astype(np.float64)), query="?mean=0,0,0&std=1,1,1"),
    Bad("unknown parameter", 422, "invalid_input", "poling", query="?poling=cls"),
    Bad("mean of two", 400, "malformed_request", "three numbers", query="?mean=1,2"),
    Bad("std of zero", 422, "invalid_input", "positive", query="?std=0,1,1"),
    Bad("huge mean", 422, "invalid_input", "at most 1e+06", query="?mean=1e38,1,1"),
    Bad("huge std", 422, "invalid_input", "at most 1e+06", query="?std=1,1e38,1"),
    Bad("mean of NaN", 422, "invalid_input", "finite", query="?mean=nan,1,1"),
    Bad(
        "unknown Accept", 406, "not_acceptable", "application/x-npy",
        headers={**NPY, "Accept": "text/html"},
    ),
    Bad(
        "layers as npy", 406, "not_acceptable", "several arrays",
        headers={**NPY, "Accept": "application/x-npy"}, query="?layers=blocks",
    ),
    Bad("over the limit", 413, "payload_too_large", "fewer rows", bytes(LIMIT + 1)),
    Bad("too many rows", 413, "payload_too_large", "fewer", npy(np.zeros((65, 3, 8, 8), np.uint8))),
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_bad_input_is_refused(url: str, bad: Bad) -> None:
    answer = httpx.post(f"{url}/embed{bad.query}", content=bad.content, headers=bad.headers)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (bad.status, bad.code), error
    assert bad.says in error["message"]
    assert error["request_id"] == answer.headers["X-Request-ID"]
    assert set(error) <= {"code", "message", "request_id", "detail"}
    _still_fine(url)


@pytest.mark.parametrize(
    ("path", "name", "values"),
    [
        ("/embed", "Content-Type", ("application/x-npy", "application/json")),
        ("/embed", "Timeout", ("100", "200")),
        ("/v2/models/arithmetic/infer", "Timeout", ("100", "200")),
        ("/v2/models/arithmetic/infer", "Inference-Header-Content-Length", ("10", "20")),
    ],
)
def test_of_two_headers_none_is_chosen(
    url: str, path: str, name: str, values: tuple[str, str]
) -> None:
    both = [*NPY.items()] if name != "Content-Type" else []
    headers = [*both, *((name, value) for value in values)]
    answer = httpx.post(url + path, content=npy(GOOD), headers=headers)
    assert answer.status_code == 400
    assert f"{name.lower()} is there twice" in answer.text.lower()


@pytest.mark.parametrize(
    "header", ["x", "[lambda: 0]", "{'descr': 1 << 2}", "{'shape': f()}", "[" * 300, "-" * 3_000]
)
def test_no_message_tells_where_an_object_lies(url: str, header: str) -> None:
    """An address in memory, as in `<ast.Name object at 0x7fd4…>`."""
    body = b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header.encode()
    answer = httpx.post(f"{url}/embed", content=body, headers=NPY)
    assert answer.status_code == 400
    assert "numpy.save" in answer.text
    assert "0x" not in answer.text


def test_body_over_the_limit_without_a_length(url: str) -> None:
    pieces = (bytes(50_000) for _ in range(8))
    answer = httpx.post(f"{url}/embed", content=pieces, headers=NPY)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "payload_too_large")
    _still_fine(url)


def test_body_that_stops_arriving(url: str) -> None:
    import socket

    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        head = "POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-npy\r\n"
        connection.sendall(f"{head}Content-Length: 1000\r\n\r\nabc".encode())
        answer = one_answer(connection)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"request_timeout" in answer
    _still_fine(url)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/embed", 405, "method_not_allowed"),
        ("GET", "/models/resnet", 404, "unknown_model"),
        ("GET", "/models/arithmetic/layers?granularity=x", 422, "invalid_input"),
    ],
)
def test_other_routes_use_the_same_error_shape(
    url: str, method: str, path: str, status: int, code: str
) -> None:
    answer = httpx.request(method, url + path)
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == code
    assert answer.json()["error"]["request_id"] == answer.headers["X-Request-ID"]


def _still_fine(url: str) -> None:
    answer = httpx.post(f"{url}/embed", content=npy(GOOD), headers=NPY)
    assert answer.status_code == 200
    assert from_npy(answer.content).shape == (2, ArithmeticEngine.DIM)


def test_without_simdjson_json_is_refused_and_arrays_are_not(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a Python for which it has no wheel."""
    monkeypatch.setattr(json_bodies, "HAS_SIMDJSON", False)
    answer = httpx.post(f"{url}/embed", content=_json({"inputs": [[[[0]]]]}), headers=JSON)
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")
    assert "pip install pysimdjson" in answer.json()["error"]["message"]
    assert httpx.post(f"{url}/embed", content=npy(GOOD), headers=NPY).status_code == 200
