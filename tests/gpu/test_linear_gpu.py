"""Linear layers by split products against float64, on a real CUDA device."""

from __future__ import annotations

import secrets

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vim_embed.kernels.fused.device_code import Limits
from vim_embed.kernels.fused.linear import LinearKernels, SplitLinear

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")
DEVICES = {
    "own": None,
    "8.0": Limits((8, 0), 108, 163 * 1024),
    "8.6": Limits((8, 6), 84, 99 * 1024),
}
BY_DEVICE = pytest.mark.parametrize("device", DEVICES)


def fresh(*shape: int) -> Tensor:
    generator = torch.Generator(CUDA).manual_seed(secrets.randbits(32))
    return torch.randn(*shape, device=CUDA, generator=generator)


def worst_row(found: Tensor, expected: Tensor) -> float:
    errors = (found.double() - expected).norm(dim=-1) / expected.norm(dim=-1)
    return float(errors.max())


@BY_DEVICE
@pytest.mark.parametrize("rows", [1, 3, 127, 197, 25216])
@pytest.mark.parametrize(
    ("columns", "inner"),
    [(8, 32), (768, 768), (3072, 768), (768, 3072), (1000, 1024), (1280, 5120)],
)
def test_it_is_the_layer(rows: int, columns: int, inner: int, device: str) -> None:
    """In memory that held NaN before, every row within what float32's own sums lose."""
    kernels = LinearKernels(CUDA, DEVICES[device])
    tokens, weight, bias = fresh(rows, inner), fresh(columns, inner) / inner, fresh(columns)
    layer = SplitLinear(kernels, weight, bias)
    held = [torch.full((rows, size), float("nan"), device=CUDA) for size in (inner, columns)]
    del held  # the allocator gives this memory next
    exact = F.linear(tokens.double(), weight.double(), bias.double())
    assert worst_row(layer(tokens), exact) < 2e-6
    exact = F.linear(tokens.double(), weight.double())
    assert worst_row(SplitLinear(kernels, weight, None)(tokens), exact) < 2e-6


@BY_DEVICE
def test_rows_of_any_size_keep_their_digits(device: str) -> None:
    """Rows from 1e-30 to 1e30 beside each other: float16 alone would lose or overflow them."""
    kernels = LinearKernels(CUDA, DEVICES[device])
    sizes = 10.0 ** torch.linspace(-30, 30, 200, device=CUDA, dtype=torch.float64)
    tokens, weight = (fresh(200, 256).double() * sizes[:, None]).float(), fresh(96, 256)
    tokens[:, 7] *= 1000  # an outlier channel
    found = SplitLinear(kernels, weight, None)(tokens)
    assert worst_row(found, F.linear(tokens.double(), weight.double())) < 2e-6


def test_what_is_not_finite_stays_so_and_stays_in_its_row() -> None:
    layer = SplitLinear(LinearKernels(CUDA), fresh(64, 64), fresh(64))
    tokens = fresh(5, 64)
    expected = layer(tokens)
    tokens[1, 3], tokens[3, 60] = float("nan"), float("inf")
    found = layer(tokens)
    assert not found[[1, 3]].isfinite().any()
    assert torch.equal(found[[0, 2, 4]], expected[[0, 2, 4]])


def test_zeros_and_no_rows() -> None:
    bias = fresh(64)
    layer = SplitLinear(LinearKernels(CUDA), fresh(64, 64), bias)
    assert torch.equal(layer(torch.zeros(2, 3, 64, device=CUDA)), bias.expand(2, 3, 64))
    assert layer(torch.zeros(0, 64, device=CUDA)).shape == (0, 64)


def test_rows_that_lie_apart_and_replays() -> None:
    """In a graph, with other inputs than those of its capture."""
    weight, bias = fresh(128, 64), fresh(128)
    layer = SplitLinear(LinearKernels(CUDA), weight, bias)
    wide = fresh(2, 50, 128)
    tokens = wide[..., ::2]
    layer(tokens)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = layer(tokens)
    wide.copy_(fresh(2, 50, 128))
    graph.replay()
    exact = F.linear(tokens.double(), weight.double(), bias.double())
    assert worst_row(out, exact) < 2e-6
