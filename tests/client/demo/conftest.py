"""The picture and its sources, found once."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from vim_embed_client.demo.stamps import Sources, find_sources, hubble_picture
from vim_embed_client.demo.views import ground_view


@pytest.fixture(scope="session")
def picture() -> NDArray[np.uint8]:
    return hubble_picture()


@pytest.fixture(scope="session")
def sources(picture: NDArray[np.uint8]) -> Sources:
    return find_sources(picture)


@pytest.fixture(scope="session")
def ground(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return ground_view(picture)
