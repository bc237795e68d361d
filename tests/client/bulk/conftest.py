"""The real service over ArithmeticEngine, in this process, and the command against it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.serving import running
from vim_embed.engines.arithmetic import ArithmeticEngine
from vim_embed.http.app import create_app
from vim_embed.settings import Settings
from vim_embed_client.cli.common import SOME_LEFT_OUT
from vim_embed_client.cli.main import run
from vim_embed_client.scoring.embedding_files import read_embeddings

from .survey import SIZE, Array

Embed = Callable[..., tuple[list[str], Array]]


@pytest.fixture(scope="session")
def service_url() -> Iterator[str]:
    """Where the service answers."""
    with running(create_app(Settings(), ArithmeticEngine(image_size=SIZE))) as url:
        yield url


@pytest.fixture
def embed(service_url: str, tmp_path: Path) -> Embed:
    """Run `vim-embed embed` and read its .npy back: ids and embeddings."""
    output = tmp_path / "out" / "out.npy"

    def embedded(*args: Any, code: int = 0) -> tuple[list[str], Array]:
        output.parent.mkdir(exist_ok=True)
        output.unlink(missing_ok=True)
        assert run(["embed", "--url", service_url, *map(str, args), "-o", str(output)]) == code
        if code not in (0, SOME_LEFT_OUT):
            return [], np.empty((0, 0))
        found = read_embeddings(str(output))
        return found.ids or [], found.embeddings

    return embedded
