"""Chooses the kernels once, with a reason that `/models` shows."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vim_embed.kernels.ops import MixerOps
from vim_embed.kernels.scan.reference import ReferenceOps


class BackendUnavailable(ValueError):
    """An explicit choice of kernels that cannot work here; the message names the fix."""


@dataclass(frozen=True)
class Backend:
    """The chosen kernels and why."""

    name: str
    reason: str
    ops: MixerOps


def select_backend(requested: str, device: torch.device, dtype: torch.dtype) -> Backend:
    """Choose for a device and compute dtype. Raises BackendUnavailable."""
    if requested not in ("auto", "reference"):
        raise BackendUnavailable(f"unknown backend {requested!r}: use auto or reference")
    return Backend("reference", "plain torch, the specification", ReferenceOps())
