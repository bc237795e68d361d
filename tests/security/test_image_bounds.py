"""Images that ask for more than they weigh, and formats that are not decoded."""

from __future__ import annotations

import functools
import io
import os
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from PIL import Image

from support.serving import NPY, npy, running
from vim_embed.engines.arithmetic import ArithmeticEngine
from vim_embed.errors import (
    DeadlineExceeded,
    InvalidInput,
    PayloadTooLarge,
    UnsupportedMediaType,
)
from vim_embed.http.app import create_app
from vim_embed.http.formats import image_pool as decoding
from vim_embed.http.formats import images
from vim_embed.http.formats.images import DecodeBudget, decode_image
from vim_embed.settings import Settings
from vim_embed.types.preprocessing import Preprocessing

HALF = (0.5, 0.5, 0.5)
SPEC = Preprocessing(image_size=8, interpolation="bicubic", mean=HALF, std=HALF)
MOST = 1_000_000


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(data: bytes, **options: object) -> np.ndarray:
    return decode_image(data, SPEC, **{"max_pixels": MOST, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("data", [b"%PDF-1.4", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"SIMPLE  =" * 400])
def test_documents_are_no_images(data: bytes) -> None:
    with pytest.raises(UnsupportedMediaType):
        decoded(data)


def _webp_bomb(width: int, height: int) -> bytes:
    size = (width - 1) | ((height - 1) << 14)
    data = b"\x2f" + struct.pack("<I", size) + bytes.fromhex("0710fd8ffe0722a2ff0100")
    chunk = b"WEBPVP8L" + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)
    return b"RIFF" + struct.pack("<I", len(chunk)) + chunk


def test_a_bomb_of_36_bytes() -> None:
    assert len(_webp_bomb(16000, 16000)) == 36
    for side in (16000, 12000, 1001):
        with pytest.raises(PayloadTooLarge, match="scale it down"):
            decoded(_webp_bomb(side, side))
    assert decoded(_webp_bomb(900, 900)).shape == (3, 8, 8)


def test_many_bombs_together() -> None:
    budget = DecodeBudget(2_000_000, 60)
    for _ in range(2):
        decoded(_webp_bomb(900, 900), budget=budget)
    with pytest.raises(PayloadTooLarge, match="together"):
        decoded(_webp_bomb(900, 900), budget=budget)


def test_decoding_ends_in_time() -> None:
    budget = DecodeBudget(10**9, 0.05)
    decoded(_webp_bomb(10, 10), budget=budget)
    time.sleep(0.06)
    with pytest.raises(DeadlineExceeded, match="decoding"):
        decoded(_webp_bomb(10, 10), budget=budget)


def test_large_images_are_decoded_two_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    running_now, most, lock = 0, 0, threading.Lock()
    convert = Image.Image.convert

    def counted(self: Image.Image, mode: str) -> Image.Image:
        nonlocal running_now, most
        with lock:
            running_now += 1
            most = max(most, running_now)
        time.sleep(0.02)
        try:
            return convert(self, mode)
        finally:
            with lock:
                running_now -= 1

    monkeypatch.setattr(Image.Image, "convert", counted)
    monkeypatch.setattr(images, "_LARGE_PIXELS", 100)
    data = saved(Image.new("RGB", (20, 30)), "PNG")
    threads = [threading.Thread(target=decoded, args=(data,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 2


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animations(kind: str) -> None:
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue", "green")]
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:])
    with pytest.raises(InvalidInput, match="several frames"):
        decoded(data)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    settings = Settings(max_image_pixels=MOST, max_request_pixels=3_000_000)
    with running(create_app(settings, ArithmeticEngine())) as url:
        yield url


def test_bombs_over_http(url: str) -> None:
    def form(count: int, side: int) -> httpx.Response:
        files = [("images", (f"{n}.webp", _webp_bomb(side, side))) for n in range(count)]
        return httpx.post(f"{url}/embed", files=files, timeout=60)

    assert form(3, 900).status_code == 200
    answer = form(500, 900)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "payload_too_large")
    answer = form(1, 1100)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "payload_too_large")


def test_images_that_take_long_delay_no_arrays(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that decode are taken, others that requests need are not; and nobody waits for one
    beyond the time that the request has.
    """
    released, begun = threading.Event(), threading.Semaphore(0)

    def slow(data: bytes, *_: object, **__: object) -> np.ndarray:
        begun.release()
        assert released.wait(30)
        return np.zeros((3, 8, 8), np.uint8)

    monkeypatch.setattr(decoding, "decode_image", slow)
    image = saved(Image.new("RGB", (8, 8)), "PNG")
    kind = {"Content-Type": "image/png"}
    many = decoding._THREADS + (os.cpu_count() or 1) + 8  # more than asyncio has for all the rest
    with ThreadPoolExecutor(many) as pool:
        post = functools.partial(httpx.post, f"{url}/embed", content=image, headers=kind)
        slow_ones = [pool.submit(post, timeout=60) for _ in range(many)]
        for _ in range(decoding._THREADS):
            assert begun.acquire(timeout=30)
        begin = time.monotonic()
        late = httpx.post(f"{url}/embed?timeout=0.3", content=image, headers=kind, timeout=60)
        assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
        array = npy(np.zeros((1024, 3, 16, 16), np.float32))
        assert httpx.post(f"{url}/embed", content=array, headers=NPY, timeout=20).status_code == 200
        assert time.monotonic() - begin < 20
        assert not any(future.done() for future in slow_ones)
        released.set()
        assert {future.result().status_code for future in slow_ones} == {200}


def test_waiting_for_one_s_turn_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_LARGE_PIXELS", 100)
    monkeypatch.setattr(images, "_LARGE_AT_ONCE", threading.BoundedSemaphore(1))
    data = saved(Image.new("RGB", (20, 30)), "PNG")
    with images._LARGE_AT_ONCE, pytest.raises(DeadlineExceeded, match=r"longer than 0\.1 s"):
        decoded(data, budget=DecodeBudget(10**6, 0.1))
    assert decoded(data, budget=DecodeBudget(10**6, 60)).shape == (3, 8, 8)
