"""Bytes on a device as a model's preprocessing wants them, or a request's own mean and std."""

from __future__ import annotations

import torch
from torch import Tensor

from vim_embed.kernels.constants import Constants
from vim_embed.types.model_info import EmbedOptions
from vim_embed.types.preprocessing import NORMALISED, PerChannel, Preprocessing, Scaling


class Normalisation:
    """Of pixels (B, C, H, W): uint8, or of a float dtype and normalised already. Not for several
    threads at once.
    """

    def __init__(self, spec: Preprocessing, device: torch.device) -> None:
        self._spec = spec
        self._device = device
        self._numbers: Constants[tuple[PerChannel, PerChannel]] = Constants()

    def scaling(self, pixels: Tensor, options: EmbedOptions) -> Scaling:
        """What makes them normalised ones."""
        if pixels.dtype != torch.uint8:
            return NORMALISED
        spec = self._spec.normalised_with(options.mean, options.std)
        return Scaling.of_bytes(spec.mean, spec.std)

    def __call__(self, pixels: Tensor, options: EmbedOptions) -> Tensor:
        """Normalised: bytes become float32, the others stay as they are."""
        if pixels.dtype != torch.uint8:
            return pixels
        spec = self._spec.normalised_with(options.mean, options.std)
        both = spec.mean, spec.std
        mean, std = self._numbers.get(both, lambda: self._per_channel(*both))
        return pixels.float().mul_(1 / 255).sub_(mean).div_(std)

    def _per_channel(self, *numbers: PerChannel) -> tuple[Tensor, ...]:
        made = torch.tensor(numbers, device=self._device, dtype=torch.float32)
        return made[0].view(1, -1, 1, 1), made[1].view(1, -1, 1, 1)
