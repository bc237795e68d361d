"""Running out of memory: the batch is halved until it fits, and no row is lost or moved."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vim_embed.engines.torch_engine import halving_on_oom


@pytest.mark.parametrize("rows", [1, 5, 8, 33])
@pytest.mark.parametrize("fits", [1, 2, 3, 100])
def test_halving(rows: int, fits: int) -> None:
    largest = 0

    def compute(pixels: Tensor) -> dict[str, Tensor]:
        nonlocal largest
        if len(pixels) > fits:
            raise torch.OutOfMemoryError("forced")
        largest = max(largest, len(pixels))
        return {"embedding": pixels * 2}

    pixels = torch.randn(rows, 3)
    torch.testing.assert_close(halving_on_oom(compute, pixels)["embedding"], pixels * 2)
    assert largest <= fits


def test_a_single_row_that_does_not_fit() -> None:
    def compute(pixels: Tensor) -> dict[str, Tensor]:
        raise torch.OutOfMemoryError("forced")

    with pytest.raises(torch.OutOfMemoryError):
        halving_on_oom(compute, torch.zeros(4, 3))
