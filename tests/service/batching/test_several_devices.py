"""A service on two devices: one that is lost is taken out, shows, and the other goes on."""

from __future__ import annotations

import time
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
import torch

from support.serving import NPY, from_npy, npy, running
from vim_embed.engines.arithmetic import ArithmeticEngine
from vim_embed.engines.interface import EngineFailed, Outputs, Staged
from vim_embed.http.app import create_app
from vim_embed.settings import Settings
from vim_embed.types.devices import resolve_devices
from vim_embed.types.model_info import EMBEDDING, EmbedOptions

SETTINGS = Settings(models=("arithmetic=unused",))
PIXELS = np.random.default_rng(0).integers(0, 250, (16, 3, 8, 8), dtype=np.uint8)


class Mortal(ArithmeticEngine):
    dead = False

    def run(self, staged: Staged) -> Outputs:
        time.sleep(0.01)
        if self.dead:
            raise EngineFailed("fell off the bus")
        return super().run(staged)

    def restart(self) -> None:
        if self.dead:
            raise EngineFailed("fell off the bus")


@pytest.fixture
def two() -> Iterator[tuple[str, Mortal]]:
    """The URL of a service, and one of its two devices."""
    first, second = Mortal(device="cuda:0"), Mortal(device="cuda:1")
    with running(create_app(SETTINGS, [first, second])) as url:
        yield url, second


def up(url: str, device: str) -> float:
    text = httpx.get(f"{url}/metrics").text
    (line,) = [
        x for x in text.splitlines() if x.startswith(f'vim_embed_device_up{{device="{device}')
    ]
    return float(line.split()[-1])


def test_a_lost_device_shows_and_the_other_answers(two: tuple[str, Mortal]) -> None:
    url, doomed = two
    assert (up(url, "cuda:0"), up(url, "cuda:1")) == (1, 1)
    doomed.dead = True
    with httpx.Client(base_url=url, headers=NPY) as client:
        end = time.monotonic() + 30
        while up(url, "cuda:1") and time.monotonic() < end:
            assert client.post("/embed", content=npy(PIXELS)).status_code in (200, 503)
        engine = ArithmeticEngine()
        expected = engine.run(engine.stage("arithmetic", [PIXELS], EmbedOptions()))[EMBEDDING]
        for _ in range(10):
            answer = client.post("/embed", content=npy(PIXELS))
            np.testing.assert_array_equal(from_npy(answer.content), expected)
    assert (up(url, "cuda:0"), up(url, "cuda:1")) == (1, 0)
    assert httpx.get(f"{url}/health/ready").status_code == 200
    assert httpx.get(f"{url}/status").json()["devices"] == {"cuda:0": "up", "cuda:1": "lost"}


def test_numbers_are_cuda_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert resolve_devices("0, 2") == [torch.device("cuda", 0), torch.device("cuda", 2)]
    assert resolve_devices("all") == [torch.device("cuda", n) for n in range(3)]
    for wrong in ("0,3", "1,cuda:1"):
        with pytest.raises(ValueError, match="cuda:"):
            resolve_devices(wrong)
