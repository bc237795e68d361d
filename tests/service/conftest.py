"""Servers shared by the service's tests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from support.fixtures_vim import DATA
from support.server_process import server_process
from support.serving import running
from vim_embed.http.app import create_app
from vim_embed.settings import Settings
from vim_embed.weights.families import ARCHITECTURES

MODELS = (f"micro={DATA / 'vim_micro.pth'}", f"plus={DATA / 'vim_micro_stride8.pth'}")


@pytest.fixture(scope="session", params=["one process", "two HTTP processes"])
def micro_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A real server with both fixture checkpoints on the CPU, in both modes."""
    if request.param == "one process":
        settings = Settings(models=MODELS, device="cpu", max_rows=256)
        with running(create_app(settings)) as url:
            yield url
        return
    models = [flag for model in MODELS for flag in ("--model", model)]
    with server_process(*models, "--max-rows", "256", "--http-processes", "2") as started:
        yield started.url


@pytest.fixture
def shallow_tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vim-tiny of two layers, where its name and width are what matters."""
    family, config = ARCHITECTURES["vim-tiny"]
    monkeypatch.setitem(ARCHITECTURES, "vim-tiny", (family, replace(config, depth=2)))
