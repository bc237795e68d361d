"""What a table of the benchmark compares: models of one kind, and their rivals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Forward = Callable[[Tensor], Tensor]
Maker = Callable[[str, torch.dtype, torch.device, int], Forward]


class RivalMissing(RuntimeError):
    """A comparison that cannot run here; the message says why."""


def timm_model(name: str, size: int) -> Any:
    """timm's model of that name without a head, for images of `size` pixels a side, in evaluation.

    Random weights. Raises RivalMissing.
    """
    try:
        import timm
    except ImportError as error:
        raise RivalMissing("timm is not installed: pip install timm") from error
    return timm.create_model(name, img_size=size, num_classes=0).eval().requires_grad_(False)


@dataclass(frozen=True)
class Kind:
    """Forwards take float32 images (B, 3, H, W) on the device and give (B, D).

    reference: in float32, by plain operations. ours: also takes
    `ieee`. rivals: by name; of those in `eager` no graph is made, and those in `apart` have other
    weights, so that their numbers are not compared.
    """

    models: tuple[str, ...]
    reference: Callable[[str, torch.device], Forward]
    ours: Callable[..., Forward]
    rivals: Mapping[str, Maker]
    eager: frozenset[str] = frozenset()
    apart: frozenset[str] = frozenset()
