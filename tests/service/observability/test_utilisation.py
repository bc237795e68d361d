"""Utilisation, with a clock that is set by hand, and at a real server with known timings."""

from __future__ import annotations

import math
import time

import httpx
import numpy as np
import pytest

from support.serving import NPY, npy, running
from vim_embed.engines.arithmetic import ArithmeticEngine
from vim_embed.engines.interface import Outputs, Staged
from vim_embed.http.app import create_app
from vim_embed.observability.utilisation import Utilisation
from vim_embed.settings import Settings


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_share_of_working_time_that_is_forwards() -> None:
    clock = Clock()
    ratio = Utilisation(1, seconds=60, clock=clock)
    assert math.isnan(ratio.value)
    ratio.entered()
    clock.now += 1
    ratio.entered()  # two at once count once
    clock.now += 3
    ratio.forward(3.0)
    ratio.left()
    ratio.left()
    assert ratio.value == pytest.approx(0.75)
    clock.now += 20  # idle time counts for nothing
    assert ratio.value == pytest.approx(0.75)
    assert ratio.working_seconds == pytest.approx(4)
    ratio.entered()
    clock.now += 4
    ratio.forward(4.0)
    ratio.left()
    assert ratio.value == pytest.approx(7 / 8)
    clock.now += 58  # the first three seconds of forwards are out of the window
    assert ratio.value == pytest.approx(1.0)
    clock.now += 60
    assert math.isnan(ratio.value)


def test_two_devices_have_twice_the_time() -> None:
    clock = Clock()
    ratio = Utilisation(2, clock=clock)
    ratio.entered()
    clock.now += 2
    ratio.forward(2.0)
    ratio.forward(1.0)
    ratio.left()
    assert ratio.value == pytest.approx(0.75)


class SlowToStage(ArithmeticEngine):
    """Half of the time goes to staging, half to the forward."""

    def stage(self, *arguments: object) -> Staged:
        time.sleep(0.1)
        return super().stage(*arguments)  # type: ignore[arg-type]

    def run(self, staged: Staged) -> Outputs:
        time.sleep(0.1)
        return super().run(staged)


def test_a_server_shows_it() -> None:
    with running(create_app(Settings(), SlowToStage())) as url:
        for _ in range(5):
            body = npy(np.zeros((2, 3, 8, 8), np.uint8))
            assert httpx.post(f"{url}/embed", content=body, headers=NPY).status_code == 200
        text = httpx.get(f"{url}/metrics").text
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
    assert 0.2 < float(lines["vim_embed_overhead_ratio"]) < 0.55
    assert float(lines["vim_embed_working_seconds_total"]) >= 1.0
