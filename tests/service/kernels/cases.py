"""Fresh random inputs and the one table of tolerances for the kernel tests."""

from __future__ import annotations

import torch
from torch import Tensor

from vim_embed.kernels.ops import Direction

# Largest relative RMS difference from the reference, per dtype of the inputs.
TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}

LENGTHS = (1, 63, 197, 785)


def relative_rms(got: Tensor, expected: Tensor) -> float:
    """RMS of the difference over RMS of what is expected; NaN if either holds one."""
    difference = (got.double() - expected.double()).square().mean().sqrt()
    return float(difference / expected.double().square().mean().sqrt())


def assert_close(got: Tensor, expected: Tensor) -> None:
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    error = relative_rms(got, expected)
    assert error <= TOLERANCES[expected.dtype], f"relative RMS error {error:.2e}"


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape).to(dtype)


def halves(batch: int, length: int, channels: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x and z (B, L, E) as the two halves of one in_proj output: strided views."""
    xz = randn(batch, length, 2 * channels, dtype=dtype)
    return xz[..., :channels], xz[..., channels:]


def direction(
    batch: int,
    length: int,
    channels: int,
    states: int = 16,
    dtype: torch.dtype = torch.float32,
    rank: int = 5,
) -> Direction:
    """Inputs in a trained model's range; step, B and C are strided views of one projection."""
    projected = randn(batch, length, rank + 2 * states, dtype=dtype)
    return Direction(
        u=randn(batch, length, channels, dtype=dtype),
        step=projected[..., :rank],
        step_weight=randn(channels, rank, dtype=dtype) / rank**0.5,
        delta_bias=randn(channels, dtype=dtype) - 3,
        A_log=randn(channels, states),
        B=projected[..., rank : rank + states],
        C=projected[..., rank + states :],
        D=randn(channels, dtype=dtype),
    )
