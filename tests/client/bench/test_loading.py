"""Commands against a service whose models are loading or failed: told, and no traceback."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.serving import running
from vim_embed.engines.arithmetic import ArithmeticEngine
from vim_embed.http.app import create_app
from vim_embed.settings import Settings
from vim_embed_client.cli.main import run


class SlowlyLoading(ArithmeticEngine):
    """Loads until it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()

    def load(self) -> None:
        assert self.gate.wait(60)
        super().load()


@pytest.fixture
def url() -> Iterator[str]:
    engine = SlowlyLoading()
    with running(create_app(Settings(), engine), wait=False) as url:
        try:
            yield url
        finally:
            engine.gate.set()


def test_models_says_what_it_waits_for(url: str, capsys: Any) -> None:
    assert run(["models", "--url", url]) == 0
    assert "loading" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command",
    [
        ["embed", "rows.npy", "-o", "out.npy"],
        ["bench", "--rounds", "1"],
        ["demo", "--count", "16"],
    ],
)
def test_a_model_that_loads_is_told(
    url: str, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("rows.npy", np.zeros((2, 3, 8, 8), np.uint8))
    assert run([*command, "--url", url]) == 1
    told = capsys.readouterr().err
    assert "arithmetic is loading" in told
    assert "`vim-embed models` says when it is ready" in told
    assert not Path("out.npy.parts").exists()
