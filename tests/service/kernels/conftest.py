from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from vim_embed.kernels.select import BackendUnavailable, select_backend


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """New tensors start as NaN, so that an element that is never written fails the comparison."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="session")
def has_cpu_kernels() -> bool:
    try:
        select_backend("cpu", torch.device("cpu"), torch.float32)
    except BackendUnavailable:
        return False
    return True
