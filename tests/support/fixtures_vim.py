"""Small checkpoints of Vim and its relatives, and what the original code computes with them."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

DATA = Path(__file__).parents[1] / "data"
NAMES = ("vim_micro", "vim_micro_stride8")
# By fixture, the family that it is of.
RELATIVES = {
    "fastvim_mae_micro": "fastvim-mae",
    "fastvim_vim_micro": "fastvim",
    "mambar_micro": "mamba-reg",
    "mambar_noneck_micro": "mamba-reg",
    "videomamba_micro": "videomamba",
    "videomamba_sd_micro": "videomamba",
    "vim_front_micro": "vim-front",
    "vim_front_nodiv_micro": "vim-front-sum",
    "vim_mid_nodiv_micro": "vim-sum",
    "vim_rope_micro": "vim-rope-front-sum",
    "vim_rope_nocls_micro": "vim-rope-nocls-sum",
}


@dataclass(frozen=True)
class Fixture:
    """A checkpoint's path, its pixels, and the original code's outputs in float32."""

    path: Path
    pixel_values: NDArray[np.float32]
    tokens: NDArray[np.float32]
    cls: NDArray[np.float32]
    mean: NDArray[np.float32]
    block_mean: NDArray[np.float32]


def load_fixture(name: str) -> Fixture:
    with np.load(DATA / f"{name}.npz") as arrays:
        fields = {key: arrays[key] for key in arrays if key != "logits"}
    return Fixture(DATA / f"{name}.pth", **fields)


def load_arrays(name: str) -> dict[str, NDArray[Any]]:
    """All that the original code computed of a fixture."""
    with np.load(DATA / f"{name}.npz") as arrays:
        return dict(arrays)


def raw_checkpoint(name: str) -> dict[str, Any]:
    """The whole file as it was saved."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        content: dict[str, Any] = torch.load(DATA / f"{name}.pth", weights_only=True)
    return content


def relative_l2(found: Any, expected: Any) -> float:
    """‖found − expected‖ / ‖expected‖."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def banded(folder: Path, channels: int) -> Path:
    """vim_micro whose patch embedding repeats RGB's weights over other bands."""
    content = raw_checkpoint("vim_micro")
    weight = content["model"]["patch_embed.proj.weight"]
    repeated = weight[:, [band % 3 for band in range(channels)]]
    content["model"]["patch_embed.proj.weight"] = repeated.contiguous()
    torch.save(content, folder / f"bands{channels}.pth")
    return folder / f"bands{channels}.pth"
