"""The training scan and its gradients, beside autograd of the plain recurrence."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from training.scan import TrainingOps, selective_scan

from support.fixtures_vim import relative_l2
from vim_embed.kernels.ops import Direction
from vim_embed.kernels.reference import ReferenceOps


def inputs(length: int, seed: int) -> list[Tensor]:
    """Leaves: z, then u, delta, bias, A, B, C, D of each direction; half the scales of Mamba's."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    batch, channels, states = 3, 5, 4
    leaves = [normal(batch, length, channels)]
    for _ in range(2):
        leaves += [
            normal(batch, length, channels),
            normal(batch, length, channels),
            normal(channels) - 1,
            -normal(channels, states).exp(),
            normal(batch, length, states),
            normal(batch, length, states),
            normal(channels),
        ]
    return [leaf.requires_grad_() for leaf in leaves]


def direction(leaves: list[Tensor]) -> Direction:
    u, delta, bias, a, b, c, d = leaves
    return Direction(u=u, delta=delta, delta_bias=bias, A=a, B=b, C=c, D=d)


def plain_scan(inputs: Direction, *, reverse: bool) -> Tensor:
    """The recurrence of the reference without its writes into a tensor, for autograd."""
    steps = torch.nn.functional.softplus(inputs.delta + inputs.delta_bias)
    state = torch.zeros(len(inputs.u), *inputs.A.shape)
    out: dict[int, Tensor] = {}
    order = range(inputs.u.shape[1])
    for t in reversed(order) if reverse else order:
        drive = (steps[:, t] * inputs.u[:, t])[..., None] * inputs.B[:, t, None]
        state = torch.exp(steps[:, t, :, None] * inputs.A) * state + drive
        out[t] = (state * inputs.C[:, t, None]).sum(-1) + inputs.D * inputs.u[:, t]
    return torch.stack([out[t] for t in order], dim=1)


@pytest.mark.parametrize(("length", "chunk"), [(1, 16), (7, 3), (16, 16), (33, 8), (20, 64)])
def test_output_and_every_gradient(length: int, chunk: int) -> None:
    leaves = inputs(length, seed=length)
    one, two = direction(leaves[1:8]), direction(leaves[8:])
    gate = torch.nn.functional.silu(leaves[0])
    right = 0.5 * (plain_scan(one, reverse=False) + plain_scan(two, reverse=True)) * gate
    found = TrainingOps(chunk).scan(one, two, leaves[0])
    assert relative_l2(found.detach(), right.detach()) < 1e-5
    assert relative_l2(found.detach(), ReferenceOps().scan(one, two, leaves[0]).detach()) < 1e-5
    weights = torch.randn(right.shape, generator=torch.Generator().manual_seed(9))
    expected = torch.autograd.grad((right * weights).sum(), leaves)
    gradients = torch.autograd.grad((found * weights).sum(), leaves)
    for mine, theirs in zip(gradients, expected, strict=True):
        if length == 1 and not theirs.any():  # the first token decays nothing
            assert not mine.any()
        else:
            assert relative_l2(mine, theirs) < 1e-5


def test_gradients_by_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    arguments = [normal(2, 1, 5, 2), normal(2, 1, 5, 2).exp(), -normal(2, 3, 2).exp()]
    arguments += [normal(2, 1, 5, 3), normal(2, 1, 5, 3)]
    leaves = [each.requires_grad_() for each in arguments]
    assert torch.autograd.gradcheck(lambda u, d, a, b, c: selective_scan(u, d, a, b, c, 2), leaves)
