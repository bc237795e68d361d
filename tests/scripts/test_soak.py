"""The soak's own judgement, and a few seconds of it; the long run is `make soak`."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import soak

from support.server_memory import Watched


def watched(rise: float) -> Watched:
    """A process that warms up for 20 s, then rises by this share, with noise."""
    seconds = np.arange(0, 100, 0.5)
    noise = np.random.default_rng(0).normal(0, 1e6, len(seconds))
    resident = 500e6 * np.minimum(1, seconds / 20) + noise
    resident += 500e6 * rise * np.maximum(0, seconds - 20) / 80
    return Watched(list(seconds), [[int(value)] for value in resident], [])


def test_a_leak_is_told_from_noise() -> None:
    (flat,) = soak.drifts(watched(0), 20)
    (leak,) = soak.drifts(watched(0.05), 20)
    assert abs(flat.share) < 0.003
    assert leak.share == pytest.approx(0.05, abs=0.003)
    answered = soak.Load(Counter({"200": 5, "429": 1}), rows=9)
    assert soak.sound(answered, [flat], 0.02)
    assert not soak.sound(answered, [flat, leak], 0.02)
    assert not soak.sound(soak.Load(Counter({"500": 1, "200": 5}), rows=9), [flat], 0.02)
    assert not soak.sound(soak.Load(Counter({"200": 5}), rows=9, wrong=1), [flat], 0.02)


def test_a_few_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    """Every kind of body is answered."""
    arguments = ["--minutes", "0.05", "--largest", "65", "--threads", "6", "--every", "0.2"]
    assert soak.main([*arguments, "--most", "10"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["answers"]["200"] > 0  # how many, the machine's other work decides
    assert report["wrong"] == 0
