"""A service on two devices: one that is lost is taken out, shows, and the other goes on."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

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
from vim_embed_client import Client
from vim_embed_client.cli.main import run

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
    ready = httpx.get(f"{url}/health/ready")
    assert ready.status_code == 200
    reason = "lost: fell off the bus; fell off the bus"
    assert ready.json()["degraded"] == {"cuda:1": reason}
    status = httpx.get(f"{url}/status").json()
    assert status["devices"] == {"cuda:0": "up", "cuda:1": "lost"}
    assert status["degraded"] == {"cuda:1": reason}
    assert httpx.get(f"{url}/models/arithmetic").json()["degraded"] == {"cuda:1": reason}
    assert "vim_embed_degraded 1.0" in httpx.get(f"{url}/metrics").text
    with Client(url) as ours:
        assert ours.embed(PIXELS).provenance.device == "cuda:0"  # who computed it, not who could


def test_strict_health_tells_a_whole_service_from_a_degraded_one(
    two: tuple[str, Mortal], capsys: pytest.CaptureFixture[str]
) -> None:
    url, doomed = two
    assert run(["health", "--strict", "--url", url]) == 0
    assert "degraded" not in capsys.readouterr().out
    doomed.unload("arithmetic")
    assert run(["health", "--url", url]) == 0
    assert "degraded: cuda:1: arithmetic is not loaded here" in capsys.readouterr().out
    assert run(["health", "--strict", "--url", url]) == 1
    assert run(["health", "--strict", "--json", "--url", url]) == 1
    assert (
        "arithmetic is not loaded"
        in json.loads(capsys.readouterr().out.split("\n", 2)[2])["degraded"]["cuda:1"]
    )


def test_a_forward_that_takes_long_is_said_before_it_counts_as_a_hang() -> None:
    gate = threading.Event()

    class Slow(ArithmeticEngine):
        def run(self, staged: Staged) -> Outputs:
            if staged.rows > 1:
                assert gate.wait(60)
            return super().run(staged)

    settings = Settings(models=("arithmetic=unused",), forward_timeout=10)
    with running(create_app(settings, Slow())) as url, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(httpx.post, f"{url}/embed", content=npy(PIXELS), headers=NPY)
        end = time.monotonic() + 30
        while not (said := httpx.get(f"{url}/health/ready").json()["degraded"]):
            assert time.monotonic() < end
        assert said["cpu"].startswith("a forward has taken ")
        assert said["cpu"].endswith("at 10 s it counts as a hang")
        gate.set()
        asked.result()
        until_whole = time.monotonic() + 30
        while httpx.get(f"{url}/health/ready").json().get("degraded") != {}:
            assert time.monotonic() < until_whole


def test_numbers_are_cuda_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert resolve_devices("0, 2") == [torch.device("cuda", 0), torch.device("cuda", 2)]
    assert resolve_devices("all") == [torch.device("cuda", n) for n in range(3)]
    for wrong in ("0,3", "1,cuda:1"):
        with pytest.raises(ValueError, match="cuda:"):
            resolve_devices(wrong)
