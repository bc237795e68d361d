"""One Ray node for all tests that need no more."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.cluster_parts import ray_here, serving_here


@pytest.fixture(scope="session")
def ray_node() -> Iterator[None]:
    """Ray runs on one node, without Serve."""
    with ray_here():
        yield


@pytest.fixture(scope="module")
def serve_url(ray_node: None) -> Iterator[str]:
    """Serve runs there, without an application yet; its URL."""
    with serving_here() as url:
        yield url
