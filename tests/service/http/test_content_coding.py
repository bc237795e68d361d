"""Compressed bodies, in both modes: every coding and framing, bombs, damage, limits."""

from __future__ import annotations

import gzip
import io
import json
import random
import socket
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from security.processes import server_process
from support.serving import NPY, npy
from vim_embed.errors import (
    MalformedRequest,
    PayloadTooLarge,
    QueueFull,
    ServiceError,
    UnsupportedEncoding,
)
from vim_embed.http.body.arena import Arena
from vim_embed.http.body.buffer import BodyBuffer
from vim_embed.http.body.content_coding import CODINGS, PIECE, Decoder, coding_of

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAX_BODY, INFLIGHT = 6_000_000, 60_000_000
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "zstd": zstd.compress,
    "gzip": gzip.compress,
    "deflate": zlib.compress,
}
PIXELS = np.random.default_rng(5).integers(0, 256, (40, 3, 64, 64), dtype=np.uint8)
SMALL, LARGE = npy(PIXELS[:2]), npy(PIXELS)  # below and above what comes straight into memory


def unsized(data: bytes) -> bytes:
    """A zstd frame that does not say how long its content is."""
    compressor = zstd.ZstdCompressor()
    return compressor.compress(data) + compressor.flush()


def test_the_answer_names_all_codings() -> None:
    assert UnsupportedEncoding.headers["Accept-Encoding"] == ", ".join(CODINGS)
    assert set(COMPRESS) == set(CODINGS)


@pytest.mark.parametrize(
    ("header", "coding"),
    [("", None), ("identity", None), ("GZip", "gzip"), ("x-gzip", "gzip"), (" zstd , ", "zstd"),
     ("identity, gzip", "gzip")],
)  # fmt: skip
def test_names_of_codings(header: str, coding: str | None) -> None:
    assert coding_of(header) == coding


@pytest.mark.parametrize("header", ["br", "gzip, zstd", "gzip, gzip", "gzip;q=1", "é"])
def test_codings_that_are_not_taken(header: str) -> None:
    with pytest.raises(UnsupportedEncoding, match="zstd, gzip, deflate"):
        coding_of(header)


def decoded(coding: str, data: bytes, step: int = 1 << 18) -> bytes:
    decoder, pieces = Decoder(coding), []
    for start in range(0, len(data), step):
        decoder.feed(data[start : start + step])
        while piece := decoder.read():
            assert len(piece) <= PIECE
            pieces.append(piece)
    decoder.finish()
    return b"".join(pieces)


@given(
    st.sampled_from(CODINGS),
    st.lists(st.tuples(st.integers(0, 3_000_000), st.booleans()), min_size=1, max_size=4),
    st.integers(1, 400_000),
)
def test_any_body_in_any_parts(coding: str, sizes: list[tuple[int, bool]], step: int) -> None:
    parts = [random.Random(n).randbytes(n) if noisy else bytes(n) for n, noisy in sizes]
    if coding == "deflate":
        parts = parts[:1]
    whole = b"".join(COMPRESS[coding](part) for part in parts)
    assert decoded(coding, whole, max(step, len(whole) // 1000)) == b"".join(parts)


@given(st.sampled_from(CODINGS), st.binary(max_size=300), st.data())
def test_damage_is_refused_or_harmless(coding: str, body: bytes, data: st.DataObject) -> None:
    sound = COMPRESS[coding](body)
    cut = data.draw(st.integers(0, len(sound) - 1))
    with pytest.raises(ServiceError):
        decoded(coding, sound[:cut])
    with pytest.raises(ServiceError):
        decoded(coding, sound + data.draw(st.binary(min_size=1, max_size=3)))
    with pytest.raises(ServiceError) as refused:  # so short a body is no sound one by chance
        decoded(coding, body)
    assert refused.value.status in (400, 413)


def test_zstd_s_own_kinds_of_frames() -> None:
    skippable = (0x184D2A53).to_bytes(4, "little") + (5).to_bytes(4, "little") + b"12345"
    assert decoded("zstd", skippable + unsized(b"a") + skippable + zstd.compress(b"b")) == b"ab"
    options = {int(zstd.CompressionParameter.window_log): 27}
    compressor = zstd.ZstdCompressor(options=options)
    with pytest.raises(PayloadTooLarge, match="window"):
        decoded("zstd", compressor.compress(b"far") + compressor.flush())


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_members_of_some_size_are_no_burden(coding: str) -> None:
    """As BGZF and pigz write them, and few of any size."""
    noise = np.random.default_rng(0).bytes(2000)
    assert decoded(coding, COMPRESS[coding](noise) * 2_000) == noise * 2_000
    assert decoded(coding, COMPRESS[coding](b"x") * 64) == b"x" * 64


EMPTY = {
    "gzip": gzip.compress(b""),
    "zstd": COMPRESS["zstd"](b""),
    "skippable": bytes.fromhex("502a4d1800000000"),
    "byte": COMPRESS["zstd"](b"x"),
}


@pytest.mark.parametrize("kind", EMPTY)
def test_a_crowd_of_empty_members_is_refused(kind: str) -> None:
    """Each costs a decompressor: a MiB of them took two seconds."""
    begin = time.process_time()
    with pytest.raises(MalformedRequest, match="one piece"):
        decoded("gzip" if kind == "gzip" else "zstd", EMPTY[kind] * (2**20 // len(EMPTY[kind])))
    assert time.process_time() - begin < 1


def test_a_room_that_grows_keeps_what_it_has() -> None:
    room = BodyBuffer(Arena.private(1 << 20))
    for start in range(10):
        room.append(bytes([start]) * 30_000)
    assert bytes(room.whole()) == b"".join(bytes([start]) * 30_000 for start in range(10))
    with pytest.raises(PayloadTooLarge, match="inflight-bytes"):
        room.append(bytes(1 << 20))


def test_working_memory_counts_while_it_is_used() -> None:
    room = BodyBuffer(Arena.private(1 << 20))
    with room.working(600_000), pytest.raises(PayloadTooLarge):
        room.append(bytes(500_000))
    room.append(bytes(500_000))


def test_rooms_in_one_arena_share_it() -> None:
    arena = Arena.create(1_000_000)
    first, second = BodyBuffer(arena), BodyBuffer(arena)
    for value in range(4):  # neither can grow in place
        first.append(bytes([value]) * 50_000)
        second.append(bytes([100 + value]) * 50_000)
    with pytest.raises(QueueFull):
        second.append(bytes(700_000))
    assert bytes(first.whole()) == b"".join(bytes([v]) * 50_000 for v in range(4))
    assert bytes(second.whole()) == b"".join(bytes([100 + v]) * 50_000 for v in range(4))
    assert arena.held < 500_000
    first.release()
    second.release()
    second.release()
    assert arena.held == 0


@dataclass(frozen=True)
class Served:
    url: str
    path: Path
    pid: int


@pytest.fixture(scope="module", params=["1", "2"])
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("s")
    path = folder / "vim.sock"
    flags = ["--http-processes", request.param, "--unix-socket", str(path)]
    flags += ["--max-body-bytes", str(MAX_BODY), "--inflight-bytes", str(INFLIGHT)]
    with server_process(folder, *flags) as started:
        yield Served(started.url, path, started.process.pid)


def send(served: Served, body: bytes, coding: str, **headers: str) -> httpx.Response:
    head = NPY | {"Content-Encoding": coding} | headers
    return httpx.post(f"{served.url}/embed", content=body, headers=head, timeout=60)


post = partial(httpx.post, timeout=60)


def refusal(answer: httpx.Response, status: int, code: str) -> str:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["code"] == code
    return str(error["message"])


@pytest.fixture(scope="module")
def right(served: Served) -> dict[bytes, bytes]:
    answers = {body: send(served, body, "identity") for body in (SMALL, LARGE)}
    assert all(answer.status_code == 200 for answer in answers.values())
    return {body: answer.content for body, answer in answers.items()}


@pytest.mark.parametrize("coding", [*CODINGS, "ZSTD", "X-Gzip"])
@pytest.mark.parametrize("body", [SMALL, LARGE], ids=["small", "large"])
def test_the_answer_is_that_of_the_plain_body(
    served: Served, right: dict[bytes, bytes], coding: str, body: bytes
) -> None:
    plain = COMPRESS[coding.lower().removeprefix("x-")](body)
    assert send(served, plain, coding).content == right[body]
    chunked = httpx.post(
        f"{served.url}/embed",
        content=iter([plain[:100], plain[100:]]),
        headers=NPY | {"Content-Encoding": coding},
        timeout=60,
    )
    assert chunked.content == right[body]


def test_framings(served: Served, right: dict[bytes, bytes]) -> None:
    assert send(served, unsized(LARGE), "zstd").content == right[LARGE]
    for coding in ("zstd", "gzip"):
        parts = [COMPRESS[coding](LARGE[i : i + 100_000]) for i in range(0, len(LARGE), 100_000)]
        assert send(served, b"".join(parts), coding).content == right[LARGE]


def test_over_a_unix_socket(served: Served, right: dict[bytes, bytes]) -> None:
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(served.path)), timeout=60) as client:
        headers = NPY | {"Content-Encoding": "zstd"}
        for body in (SMALL, LARGE):
            answer = client.post("http://x/embed", content=zstd.compress(body), headers=headers)
            assert answer.content == right[body]


def test_a_client_that_asks_before_it_sends(served: Served, right: dict[bytes, bytes]) -> None:
    host, port = served.url.removeprefix("http://").split(":")
    body = zstd.compress(LARGE)
    head = (
        "POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-npy\r\n"
        f"Content-Encoding: zstd\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\nExpect: 100-continue\r\n\r\n"
    )
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(head.encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 100 Continue")
        connection.sendall(body)
        answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(right[LARGE])


def test_other_bodies(served: Served) -> None:
    url, headers = f"{served.url}/embed", {"Content-Encoding": "gzip"}
    file = io.BytesIO()
    Image.fromarray(PIXELS[0].transpose(1, 2, 0)).save(file, "PNG")
    form = httpx.Request("POST", url, files={"a": ("a.png", file.getvalue(), "image/png")})
    image = post(url, content=file.getvalue(), headers={"Content-Type": "image/png"})
    kind = {"Content-Type": form.headers["Content-Type"]}
    answer = post(url, content=gzip.compress(form.read()), headers=kind | headers)
    assert answer.status_code == 200
    assert answer.content == image.content
    content = json.dumps({"inputs": PIXELS[:1].tolist(), "dtype": "uint8"}).encode()
    kind = {"Content-Type": "application/json"}
    answer = post(url, content=gzip.compress(content), headers=kind | headers)
    assert (
        answer.json()["embedding"] == post(url, content=content, headers=kind).json()["embedding"]
    )


def test_v2_takes_zstd_too(served: Served) -> None:
    tensor = {"name": "pixel_values", "shape": [2, 3, 64, 64], "datatype": "UINT8"}
    head = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": 2 * 3 * 64 * 64}}]})
    body, url = head.encode() + PIXELS[:2].tobytes(), f"{served.url}/v2/models/arithmetic/infer"
    headers = {"Inference-Header-Content-Length": str(len(head))}
    plain = post(url, content=body, headers=headers)
    assert plain.status_code == 200, plain.text
    coded = post(url, content=zstd.compress(body), headers=headers | {"Content-Encoding": "zstd"})
    assert coded.json()["outputs"] == plain.json()["outputs"]


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("size", [MAX_BODY + 1, 40 * MAX_BODY])
def test_bombs(served: Served, coding: str, size: int) -> None:
    before = memory(served.pid)
    answer = send(served, bomb(coding, size), coding)
    assert "decompressed" in refusal(answer, 413, "payload_too_large")
    assert memory(served.pid) - before < INFLIGHT


def bomb(coding: str, size: int) -> bytes:
    if coding == "zstd":
        compressor = zstd.ZstdCompressor()
        parts = [compressor.compress(bytes(1 << 20)) for _ in range(size >> 20)]
        return b"".join([*parts, compressor.compress(bytes(size % (1 << 20))), compressor.flush()])
    deflater = zlib.compressobj(9, wbits=31 if coding == "gzip" else 15)
    parts = [deflater.compress(bytes(1 << 20)) for _ in range(size >> 20)]
    return b"".join([*parts, deflater.compress(bytes(size % (1 << 20))), deflater.flush()])


def memory(pid: int) -> int:
    process = psutil.Process(pid)
    return sum(each.memory_full_info().pss for each in (process, *process.children()))


def test_input_without_end_that_never_grows(served: Served) -> None:
    skippable = (
        (0x184D2A50).to_bytes(4, "little") + (1 << 20).to_bytes(4, "little") + bytes(1 << 20)
    )
    headers = NPY | {"Content-Encoding": "zstd"}
    answer = httpx.post(
        f"{served.url}/embed", content=iter([skippable] * 8), headers=headers, timeout=60
    )
    assert "over the limit" in refusal(answer, 413, "payload_too_large")


@pytest.mark.parametrize(
    ("coding", "body", "says"),
    [
        ("gzip", b"", "cut short"),
        ("zstd", b"", "cut short"),
        ("zstd", zstd.compress(LARGE)[:-5], "cut short"),
        ("gzip", gzip.compress(LARGE)[:-5], "cut short"),
        ("gzip", gzip.compress(SMALL) + b"more", "follow"),
        ("zstd", zstd.compress(SMALL) + b"more", "follow"),
        ("deflate", zlib.compress(SMALL) + b"more", "follow"),
        ("zstd", SMALL, "not zstd"),
        ("gzip", zstd.compress(SMALL), "not gzip"),
        ("gzip", gzip.compress(SMALL)[:-8] + bytes(8), "damaged"),
    ],
)
def test_damaged_bodies(served: Served, coding: str, body: bytes, says: str) -> None:
    assert says in refusal(send(served, body, coding), 400, "malformed_request")


def test_a_compressed_body_without_its_header(served: Served) -> None:
    assert ".npy" in refusal(send(served, zstd.compress(SMALL), ""), 400, "malformed_request")


@pytest.mark.parametrize("coding", ["br", "gzip, zstd", "compress"])
def test_other_codings_are_refused_with_a_list(served: Served, coding: str) -> None:
    answer = send(served, SMALL, coding)
    assert "zstd, gzip, deflate" in refusal(answer, 415, "unsupported_encoding")
    assert answer.headers["Accept-Encoding"] == "zstd, gzip, deflate"
    twice = httpx.post(
        f"{served.url}/embed",
        content=SMALL,
        headers=[*NPY.items(), ("Content-Encoding", "gzip"), ("Content-Encoding", "gzip")],
    )
    refusal(twice, 415, "unsupported_encoding")
    assert "Accept-Encoding" not in httpx.post(f"{served.url}/embed", content=SMALL).headers


def test_nothing_stays_reserved(served: Served, right: dict[bytes, bytes]) -> None:
    for _ in range(30):  # 12 MB are reserved for each, of 60 or 30
        refusal(send(served, zstd.compress(LARGE)[:-5], "zstd"), 400, "malformed_request")
    assert send(served, zstd.compress(LARGE), "zstd").content == right[LARGE]
