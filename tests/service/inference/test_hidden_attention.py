"""Hidden attention beside the dense matrix that the reference scan gives for unit inputs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from support.fixtures_vim import DATA, load_fixture, relative_l2
from vim_embed.inference.hidden_attention import explain
from vim_embed.kernels.ops import Direction
from vim_embed.kernels.reference import ReferenceOps, scan_direction
from vim_embed.models.vim import BiMamba, Vim
from vim_embed.weights.load import load_model


def model(name: str, family: str = "vim", backend: str = "torch") -> Vim:
    path = f"{family}:{DATA / f'{name}.pth'}"
    found = load_model("m", path, device="cpu", backend=backend).module
    assert isinstance(found, Vim)
    return found


class DenseOps(ReferenceOps):
    """Takes down every mixer's whole matrix (B, E, L, L), one unit input after the other."""

    def __init__(self, matrices: list[Tensor]) -> None:
        self._matrices = matrices

    def scan(self, forward: Direction, backward: Direction, z: Tensor | None) -> Tensor:
        batch, length, channels = forward.u.shape
        dense = torch.empty(batch, channels, length, length)
        for source in range(length):
            unit = torch.zeros_like(forward.u)
            unit[:, source] = 1
            nothing = torch.zeros(channels)
            ways = (
                scan_direction(replace(inputs, u=unit, D=nothing), reverse=reverse)
                for inputs, reverse in ((forward, False), (backward, True))
            )
            dense[..., source] = 0.5 * sum(ways, torch.zeros(())).transpose(1, 2)
        self._matrices.append(dense)
        return super().scan(forward, backward, z)


@pytest.mark.parametrize(
    ("name", "family", "token"),
    [
        ("vim_micro", "vim", 8),
        ("vim_micro", "vim", 0),
        ("vim_micro_stride8", "vim", 24),
        ("vim_front_micro", "vim-front", 0),
        ("mambar_micro", "mamba-reg", 3),
        ("fastvim_vim_micro", "fastvim", 5),
    ],
)
@torch.inference_mode()
def test_rows_of_the_dense_matrix(name: str, family: str, token: int) -> None:
    with np.load(DATA / f"{name}.npz") as arrays:
        images = torch.from_numpy(arrays["pixel_values"][:2])
    found = explain(model(name, family), images, token)
    dense = model(name, family, "reference")
    matrices: list[Tensor] = []
    for module in dense.modules():
        if isinstance(module, BiMamba):
            module.ops = DenseOps(matrices)
    dense(images)
    right = torch.stack([m[:, :, token].abs().mean(dim=1) for m in matrices], dim=1)
    assert relative_l2(found.attention, right) < 1e-5
    assert (found.attention > 0).all()


def test_norms_are_those_of_the_residual_stream() -> None:
    fixture = load_fixture("vim_micro")
    vim = model("vim_micro")
    images = torch.from_numpy(fixture.pixel_values)
    streams: list[Tensor] = []
    for layer in vim.layers:
        layer.register_forward_hook(lambda module, inputs, out: streams.append(out[0] + out[1]))
    found = explain(vim, images, 8)
    right = torch.stack([stream.norm(dim=-1) for stream in streams], dim=1)
    assert found.norms.shape == (len(images), 4, 17)
    assert relative_l2(found.norms, right) < 1e-6


def test_the_model_is_left_as_it_was() -> None:
    vim = model("vim_micro")
    images = torch.from_numpy(load_fixture("vim_micro").pixel_values)
    with torch.inference_mode():
        before = vim(images)
        explain(vim, images, 8)
        assert torch.equal(vim(images), before)
    hooks = [module for module in vim.modules() if module._forward_hooks]
    assert hooks == []
