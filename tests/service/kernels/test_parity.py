"""The whole model against the fixtures of the original code, on every CPU backend."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vim_embed.kernels.select import select_backend
from vim_embed.models.vim import Block, Vim, VimConfig

DATA = Path(__file__).parents[2] / "data"
CONFIGS = {
    "vim_micro": VimConfig(dim=64, depth=4, image_size=64),
    "vim_micro_stride8": VimConfig(dim=32, depth=2, image_size=64, stride=8),
}
LIMIT = 1e-5  # relative L2 error


def load(name: str) -> Vim:
    with torch.serialization.safe_globals([argparse.Namespace]):
        checkpoint: dict[str, Any] = torch.load(DATA / f"{name}.pth", weights_only=True)
    state = {k: v for k, v in checkpoint["model"].items() if not k.startswith("head.")}
    model = Vim(CONFIGS[name])
    model.load_state_dict(state)
    return model.eval()


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


@pytest.mark.parametrize("backend", ["reference", "torch", "cpu"])
@pytest.mark.parametrize("name", CONFIGS)
def test_fixture(name: str, backend: str, has_cpu_kernels: bool) -> None:
    if backend == "cpu" and not has_cpu_kernels:
        pytest.skip("no C++ compiler here")
    expected = {k: torch.from_numpy(v) for k, v in np.load(DATA / f"{name}.npz").items()}
    model = load(name)
    model.use_ops(select_backend(backend, torch.device("cpu"), torch.float32).ops)
    streams: list[Tensor] = []
    for layer in model.layers:
        layer.register_forward_hook(
            lambda module, inputs, output: streams.append(Block.observed(output).mean(dim=1))
        )
    tokens = model(expected["pixel_values"])
    assert relative(tokens, expected["tokens"]) <= LIMIT
    assert relative(tokens[:, model.cls_index(tokens.shape[1])], expected["cls"]) <= LIMIT
    assert relative(tokens.mean(dim=1), expected["mean"]) <= LIMIT
    for got, wanted in zip(streams, expected["block_mean"], strict=True):
        assert relative(got, wanted) <= LIMIT
