"""docs/v2.md: its code runs as it stands, and its tables are the code's."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pytest
from generate_docs import ROOT

from support.serving import running
from vim_embed.engines.arithmetic import ArithmeticEngine
from vim_embed.http.app import create_app
from vim_embed.http.formats.v2_messages import InferParameters
from vim_embed.settings import Settings

PAGE = (ROOT / "docs" / "v2.md").read_text()
ADDRESS = "127.0.0.1:8000"


@pytest.fixture
def url(shallow_tiny: None) -> Iterator[str]:
    settings = Settings(models=("vim-tiny",), device="cpu", random_weights=True)
    with running(create_app(settings)) as url:
        yield url


def column(header: str) -> str:
    """The first cells of the table under `header`."""
    rows = PAGE[PAGE.index(header) :].split("\n\n")[0].splitlines()[2:]
    return " ".join(row.split("|")[1] for row in rows)


def test_the_code_runs_as_it_stands(url: str) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert ADDRESS in block
    names: dict[str, object] = {}
    exec(compile(block.replace(ADDRESS, url.removeprefix("http://")), "docs/v2.md", "exec"), names)
    embeddings = names["embeddings"]
    assert isinstance(embeddings, np.ndarray)
    assert (embeddings.shape, embeddings.dtype) == ((4, 192), np.dtype("float32"))
    assert np.isfinite(embeddings).all()
    assert len(np.unique(embeddings, axis=0)) == 4
    layer = names["layers"].as_numpy("layers.1")  # type: ignore[attr-defined]
    assert layer.shape == (4, 192)
    assert str(names["digest"]).startswith("random-sha256:")


def test_the_parameters_are_the_code_s() -> None:
    documented = re.findall(r"`(\w+)`", column("| parameter | values | default |"))
    assert sorted(documented) == sorted(InferParameters.model_fields)


def test_the_routes_are_the_code_s() -> None:
    documented = set(re.findall(r"`(\w+ /v2[^`]*)`", column("| route | answer |")))
    paths = create_app(Settings(), ArithmeticEngine()).openapi()["paths"]
    routes = {
        f"{method.upper()} {path}"
        for path, methods in paths.items()
        for method in methods
        if path.startswith("/v2") and "/versions/" not in path
    }
    assert documented == routes
    for path in paths:
        if "/versions/{version}" in path:
            assert path.replace("/versions/{version}", "") in paths
