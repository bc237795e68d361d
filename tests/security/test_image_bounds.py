"""Images that ask for more than they weigh, and decoder processes that are ended."""

from __future__ import annotations

import asyncio
import functools
import io
import signal
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from astropy.io import fits
from PIL import Image

from security.processes import server_process
from support.serving import NPY, npy, running
from vim_embed.engines.arithmetic import ArithmeticEngine
from vim_embed.errors import (
    DeadlineExceeded,
    Draining,
    InvalidInput,
    MalformedRequest,
    PayloadTooLarge,
    QueueFull,
    ServiceError,
    UnsupportedMediaType,
    WorkerFailed,
)
from vim_embed.http.app import create_app
from vim_embed.http.body.arena import Arena
from vim_embed.http.body.workspace import Workspace
from vim_embed.http.formats import image_pool
from vim_embed.http.formats.image_pool import DecodeBudget, DecoderPool, File
from vim_embed.http.formats.images import decode_image
from vim_embed.settings import Settings
from vim_embed.types.pixels import PixelArray
from vim_embed.types.preprocessing import Preprocessing
from vim_embed_pixels.fits import FitsOptions

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


@pytest.fixture
def pool() -> Iterator[DecoderPool]:
    made = DecoderPool(2)
    yield made
    made.stop()


async def pooled(
    pool: DecoderPool,
    *files: bytes,
    pixels: int = 10**9,
    seconds: float = 60,
    memory: int = 1 << 30,
    max_pixels: int = 10**8,
) -> PixelArray:
    named = [File(f"image {row}", memoryview(data)) for row, data in enumerate(files)]
    workspace = Workspace(Arena.private(memory))
    budget = DecodeBudget(pixels, seconds)
    return (await pool.decode(named, SPEC, budget, workspace, max_pixels=max_pixels)).rows


def noise(side: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    )


SMALL = [saved(noise(20, seed), kind) for seed, kind in enumerate(("PNG", "JPEG", "TIFF") * 3)]
LARGE = saved(noise(1100), "PNG", compress_level=1)
DAMAGED = b"\x89PNG\r\n\x1a\nand no more"


def slow_image() -> bytes:
    """Several seconds of work: a progressive picture with many scans."""
    data = saved(noise(250).resize((5000, 5000)), "JPEG", progressive=True, quality=30)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * 90 + data[-2:]


SLOW = slow_image()


async def test_the_pool_gives_what_the_decoder_gives(pool: DecoderPool) -> None:
    """In order, large and small, again and again from the same process."""
    files = [*SMALL[:4], LARGE, *SMALL[4:], LARGE]
    expected = np.stack([decoded(data, max_pixels=10**8) for data in files])
    for _ in range(3):
        np.testing.assert_array_equal(await pooled(pool, *files), expected)
    (process,) = pool._idle
    assert process.fit


async def test_a_refused_image_costs_no_process(pool: DecoderPool) -> None:
    await pooled(pool, SMALL[0])
    (process,) = pool._idle
    for bad, files in (
        (0, [b"text"]),
        (2, [*SMALL[:2], DAMAGED, *SMALL[2:]]),
        (1, [SMALL[0], b"text"]),
    ):
        with pytest.raises(ServiceError, match=f"image {bad}"):
            await pooled(pool, *files)
    assert pool._idle == [process]
    np.testing.assert_array_equal(await pooled(pool, SMALL[0]), [decoded(SMALL[0])])


async def test_many_bombs_together(pool: DecoderPool) -> None:
    bomb = _webp_bomb(900, 900)
    assert (await pooled(pool, bomb, bomb, pixels=2_000_000)).shape == (2, 3, 8, 8)
    with pytest.raises(PayloadTooLarge, match="together"):
        await pooled(pool, *[bomb] * 50, pixels=2_000_000)
    with pytest.raises(PayloadTooLarge, match="together"):
        await pooled(pool, _webp_bomb(1500, 1500), pixels=2_000_000)


async def test_what_an_image_takes_is_counted(pool: DecoderPool) -> None:
    """20 bytes a pixel of a large one, while it is decoded, and the pixels that come of it."""
    assert (await pooled(pool, LARGE, memory=32 << 20)).shape == (1, 3, 8, 8)
    with pytest.raises(PayloadTooLarge, match="inflight-bytes"):
        await pooled(pool, LARGE, memory=20 << 20)
    arena = Arena.private(48 << 20)
    Workspace(arena).count(24 << 20)
    with pytest.raises(QueueFull):
        await pool.decode(
            [File("x", memoryview(LARGE))], SPEC, DecodeBudget(10**9, 60), Workspace(arena),
            max_pixels=10**8,
        )  # fmt: skip


async def test_the_fluxes_of_a_fits_file_count_eight_times(pool: DecoderPool) -> None:
    buffer = io.BytesIO()
    fits.PrimaryHDU(np.random.default_rng(0).normal(size=(400, 400))).writeto(buffer)
    told = asdict(FitsOptions())
    file = File("a.fits", memoryview(buffer.getvalue()), told)

    async def decoded_in(memory: int) -> PixelArray:
        workspace, budget = Workspace(Arena.private(memory)), DecodeBudget(10**9, 60)
        return (await pool.decode([file], SPEC, budget, workspace, max_pixels=10**8)).rows

    assert (await decoded_in(40 << 20)).shape == (1, 3, 8, 8)
    with pytest.raises(PayloadTooLarge, match="inflight-bytes"):
        await decoded_in(20 << 20)


async def test_large_images_wait_for_their_turn(pool: DecoderPool) -> None:
    async with pool._large, pool._large:
        with pytest.raises(DeadlineExceeded, match=r"longer than 1 s"):
            await pooled(pool, LARGE, seconds=1)
        assert (await pooled(pool, SMALL[0])).shape == (1, 3, 8, 8)
    assert (await pooled(pool, LARGE)).shape == (1, 3, 8, 8)


async def test_a_timeout_ends_the_decoding(pool: DecoderPool) -> None:
    """Not the wait for it alone: the process is gone."""
    await pooled(pool, SMALL[0])
    (process,) = pool._idle
    with pytest.raises(DeadlineExceeded, match="decoding"):
        await pooled(pool, SLOW, seconds=0.3)
    assert not psutil.pid_exists(process._process.pid)
    assert (await pooled(pool, SMALL[0])).shape == (1, 3, 8, 8)


async def test_cpu_time_is_bounded(pool: DecoderPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_pool, "_SECONDS", 0.2)
    monkeypatch.setattr(image_pool, "_SECONDS_A_MIB", 0.0)
    with pytest.raises(PayloadTooLarge, match=r"image 1 takes over 0\.2 s of CPU time"):
        await pooled(pool, SMALL[0], SLOW, SMALL[1])
    assert (await pooled(pool, SMALL[0])).shape == (1, 3, 8, 8)


@pytest.mark.parametrize(
    ("number", "error", "retryable"),
    [(signal.SIGKILL, WorkerFailed, True), (signal.SIGSEGV, MalformedRequest, False)],
)
async def test_a_process_that_dies(
    pool: DecoderPool, number: int, error: type[ServiceError], retryable: bool
) -> None:
    await pooled(pool, SMALL[0])
    with stopped(pool) as processes:
        answer = asyncio.ensure_future(pooled(pool, SMALL[0]))
        await _busy(pool)
        processes[0].send_signal(number)
    with pytest.raises(error):
        await answer
    assert error.retryable is retryable
    assert (await pooled(pool, SMALL[0])).shape == (1, 3, 8, 8)


def tiff_of_places() -> bytes:
    """Eight MiB of places of strips, of which Pillow makes numbers."""
    places = np.random.default_rng(0).integers(1000, 60_000, 1 << 22, dtype=np.uint16)
    tags = [
        (256, 3, 1, 9), (257, 3, 1, 9), (258, 3, 1, 8), (262, 3, 1, 1),
        (273, 3, len(places), 86), (279, 3, 1, 81),
    ]  # fmt: skip
    listed = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + listed + bytes(4)
    return head + bytes(86 - len(head)) + places.tobytes()


async def test_a_process_that_lacked_memory_serves_nobody_else(pool: DecoderPool) -> None:
    """One that met a damaged file does."""
    damaged = SMALL[0][:-300]
    for data, error, stays in [
        (damaged, MalformedRequest, True),
        (tiff_of_places(), PayloadTooLarge, False),
    ]:
        await pooled(pool, SMALL[0])
        before = [each._process.pid for each in pool._idle]
        with pytest.raises(error):
            await pooled(pool, data)
        assert (await pooled(pool, SMALL[0])).shape == (1, 3, 8, 8)
        after = [each._process.pid for each in pool._idle]
        assert (before == after) is stays


async def test_the_end_of_the_service_ends_the_decoding(pool: DecoderPool) -> None:
    await pooled(pool, SMALL[0])
    with stopped(pool) as processes:
        answer = asyncio.ensure_future(pooled(pool, SMALL[0]))
        await _busy(pool)
        pool.stop()
        with pytest.raises(Draining):
            await answer
        assert not processes[0].is_running()
    with pytest.raises(Draining):
        await pooled(pool, SMALL[0])
    pool.stop()


@contextmanager
def stopped(pool: DecoderPool) -> Iterator[list[psutil.Process]]:
    """The idle processes do not run meanwhile, as if each had an image that takes for ever."""
    processes = [psutil.Process(each._process.pid) for each in pool._idle]
    for process in processes:
        process.suspend()
    yield processes
    for process in processes:
        if process.is_running():
            process.resume()


async def _busy(pool: DecoderPool) -> None:
    while not pool._busy or not all(process._sent for process in pool._busy):
        await asyncio.sleep(0.01)


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


def test_images_that_take_long_delay_no_arrays() -> None:
    """Processes that decode are taken, threads that requests need are not; and nobody waits for
    one beyond the time that the request has.
    """
    image, kind = SMALL[0], {"Content-Type": "image/png"}
    app = create_app(Settings(), ArithmeticEngine())
    pool: DecoderPool = app.state.decoders
    with running(app) as url, ThreadPoolExecutor(40) as threads:
        post = functools.partial(httpx.post, f"{url}/embed", content=image, headers=kind)
        first = [threads.submit(post, timeout=60) for _ in range(2 * pool.processes)]
        assert {future.result().status_code for future in first} == {200}
        with stopped(pool):
            slow = [threads.submit(post, timeout=60) for _ in range(40)]
            while len(pool._busy) < len(first) // 2 and pool._idle:
                time.sleep(0.01)
            late = httpx.post(f"{url}/embed?timeout=0.3", content=image, headers=kind, timeout=60)
            assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
            array = npy(np.zeros((1024, 3, 16, 16), np.float32))
            answer = httpx.post(f"{url}/embed", content=array, headers=NPY, timeout=60)
            assert answer.status_code == 200
        assert {future.result().status_code for future in slow} == {200}


@pytest.mark.parametrize("processes", ["1", "2"])
def test_sigterm_while_an_image_is_decoded(tmp_path: Path, processes: str) -> None:
    kind = {"Content-Type": "image/png"}
    with (
        server_process(tmp_path, "--http-processes", processes) as server,
        ThreadPoolExecutor(1) as threads,
    ):
        post = functools.partial(httpx.post, f"{server.url}/embed", headers=kind, timeout=60)
        assert post(content=SMALL[0]).status_code == 200
        (decoder,) = decoders_of(server.process)
        decoder.suspend()
        answer = threads.submit(post, content=SMALL[0])
        time.sleep(0.5)  # until it was sent the image; if not, the answer is the same
        server.process.terminate()
        result = answer.result()
        assert (result.status_code, result.json()["error"]["code"]) == (503, "draining")
        server.process.wait(30)
        assert not decoder.is_running()


def decoders_of(process: psutil.Process) -> list[psutil.Process]:
    return [
        child for child in process.children(recursive=True)
        if any("image_decoder" in part for part in child.cmdline())
    ]  # fmt: skip
