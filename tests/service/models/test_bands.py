"""Models of one, four and five bands: in process, over `/embed` and `/v2`, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from support.fixtures_vim import banded, load_fixture, relative_l2
from support.serving import NPY, from_npy, npy, running
from vim_embed import load_model
from vim_embed.engines.build import build_engines
from vim_embed.http.app import create_app
from vim_embed.inference.self_check import self_check
from vim_embed.settings import Settings


@pytest.mark.parametrize("channels", [1, 4, 5])
def test_bands_beyond_rgb(channels: int, tmp_path: Path) -> None:
    """With the bands that RGB has not at zero, the numbers are the original code's."""
    fixture = load_fixture("vim_micro")
    model = load_model("mine", banded(tmp_path, channels), device="cpu")
    assert (model.info.channels, model.info.preprocessing.channels) == (
        channels,
        f"{channels} bands",
    )
    pixels = np.zeros((len(fixture.pixel_values), channels, 64, 64), np.float32)
    shared = min(3, channels)
    pixels[:, :shared] = fixture.pixel_values[:, :shared]
    expected = fixture.mean
    if channels == 1:
        alone = np.zeros_like(fixture.pixel_values)
        alone[:, :1] = fixture.pixel_values[:, :1]
        expected = load_model("rgb", fixture.path, device="cpu").embed(alone)
    assert relative_l2(model.embed(pixels), expected) < 1e-5
    assert self_check(model).ok
    with pytest.raises(ValueError, match=f"expected {channels} channels"):
        model.embed(fixture.pixel_values)
    with pytest.raises(ValueError, match="mean and deviation are not known"):
        model.embed(np.zeros((1, channels, 64, 64), np.uint8))


def test_over_http(tmp_path: Path) -> None:
    settings = Settings(models=(f"bands={banded(tmp_path, 5)}",), device="cpu")
    pixels = np.random.default_rng(0).normal(size=(2, 5, 64, 64)).astype(np.float32)
    levels = np.random.default_rng(1).integers(0, 256, (2, 5, 64, 64), dtype=np.uint8)
    expected = load_model("mine", tmp_path / "bands5.pth", device="cpu").embed(pixels)
    Image.new("RGB", (64, 64)).save(tmp_path / "x.png")

    def post(url: str, content: bytes, **rest: Any) -> httpx.Response:
        return httpx.post(f"{url}/embed", content=content, **{"headers": NPY, **rest})

    with running(create_app(settings, build_engines(settings))) as url:
        answer = post(url, npy(pixels))
        assert relative_l2(from_npy(answer.content), expected) < 1e-5
        answer = post(url, npy(levels))
        assert answer.status_code == 422
        assert "mean and std with the request" in answer.json()["error"]["message"]
        mean, std = "0.5,0.4,0.3,0.2,0.1", "0.5,0.6,0.7,0.8,0.9"
        answer = post(url, npy(levels), params={"mean": mean, "std": std})
        per_band = [np.array(v.split(","), float).reshape(5, 1, 1) for v in (mean, std)]
        floats = ((levels / 255 - per_band[0]) / per_band[1]).astype(np.float32)
        own = load_model("mine", tmp_path / "bands5.pth", device="cpu").embed(floats)
        assert relative_l2(from_npy(answer.content), own) < 1e-5
        answer = post(url, npy(levels), params={"mean": "0.5,0.5,0.5", "std": std})
        assert (answer.status_code, "5 numbers" in answer.text) == (400, True)
        png = (tmp_path / "x.png").read_bytes()
        answer = post(url, png, headers={"Content-Type": "image/png"})
        assert (answer.status_code, "no encoded image holds" in answer.text) == (422, True)
        metadata = httpx.get(f"{url}/v2/models/bands").json()
        assert metadata["inputs"][0]["shape"] == [-1, 5, 64, 64]
