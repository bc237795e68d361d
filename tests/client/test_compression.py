"""Arrays compressed on their way, from both clients to a real service."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support.serving import running
from vim_embed.engines.arithmetic import ArithmeticEngine
from vim_embed.http.app import create_app
from vim_embed.settings import Settings
from vim_embed_client import Client, ConfigurationError, UnsupportedEncodingError
from vim_embed_client.cli.main import run
from vim_embed_client.compression import CODINGS, CompressedBody
from vim_embed_client.formats import NPY

from .conftest import MakeClient
from .fake_service import FakeService, error

PIXELS = np.random.default_rng(1).integers(0, 40, (300, 3, 32, 32), dtype=np.uint8)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with running(create_app(Settings(), ArithmeticEngine(image_size=32))) as url:
        yield url


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_the_same_embeddings(
    make_client: MakeClient, address: str, coding: str, dtype: str
) -> None:
    pixels = PIXELS.astype(dtype)
    with Client(address) as plain:
        right = plain.embed(pixels)
    found = make_client(base_url=address, compression=coding, rows_per_request=200).embed(pixels)
    np.testing.assert_array_equal(found, right)


def test_images_go_as_they_are(make_client: MakeClient, service: FakeService) -> None:
    make_client(compression="gzip").embed_images(Image.new("RGB", (9, 9), "red"))
    assert "content-encoding" not in service.seen[0].headers


def test_each_attempt_is_compressed_anew(make_client: MakeClient, service: FakeService) -> None:
    bodies: list[bytes] = []

    async def keep(_: FakeService, request: Any) -> Any:
        assert request.headers["content-encoding"] == "gzip"
        bodies.append(gzip.decompress(await request.body()))
        if len(bodies) == 1:
            return error(503, "not_ready", "soon")
        return error(415, "unsupported_encoding", "send it as it is")

    service.always = keep
    with pytest.raises(UnsupportedEncodingError):
        make_client(compression="gzip", backoff=0.01).embed(PIXELS[:2])
    assert len(bodies) == 2
    assert bodies[0] == bodies[1]
    assert len(bodies[0]) == 128 + PIXELS[:2].nbytes


def test_it_is_less() -> None:
    for coding in CODINGS:
        sent = list(CompressedBody([PIXELS.tobytes()] * 3, coding, media_type=NPY))
        assert sum(map(len, sent)) < 0.8 * 3 * PIXELS.nbytes


def test_what_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="zstd, gzip or None"):
        Client(compression="br")  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "backports.zstd", None)
    monkeypatch.setitem(sys.modules, "compression.zstd", None)
    with pytest.raises(ConfigurationError, match=r"vim-embed\[zstd\]"):
        Client(compression="zstd")


def test_from_the_command_line(address: str, tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", PIXELS)
    for name, flags in {"plain": [], "coded": ["--compression", "zstd"]}.items():
        arguments = ["embed", str(tmp_path / "in.npy"), "-o", str(tmp_path / f"{name}.npy")]
        assert run([*arguments, "--url", address, "--quiet", *flags]) == 0
    assert np.array_equal(np.load(tmp_path / "plain.npy"), np.load(tmp_path / "coded.npy"))
