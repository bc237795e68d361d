"""Servers shared by the service's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fixtures_vim import DATA
from serving import running
from vim_embed.app import create_app
from vim_embed.settings import Settings


@pytest.fixture(scope="session")
def micro_url() -> Iterator[str]:
    """A real server with both fixture checkpoints on the CPU."""
    models = (f"micro={DATA / 'vim_micro.pth'}", f"plus={DATA / 'vim_micro_stride8.pth'}")
    settings = Settings(models=models, device="cpu", max_rows=256)
    with running(create_app(settings)) as url:
        yield url
