"""What a caller may hand over as images: arrays, tensors of any device, lists of either."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from vim_embed.types.pixels import PixelArray, PixelError
from vim_embed_pixels.masks import about_mask


def as_array(values: ArrayLike | Tensor) -> PixelArray:
    """In the host's memory, which is shared where it can be; bfloat16 becomes float32.

    Raises PixelError for what is no array of numbers, and for masked ones.
    """
    if masked := about_mask(values):
        raise PixelError(masked)
    try:
        if isinstance(values, (list, tuple)) and any(isinstance(row, Tensor) for row in values):
            values = torch.stack([torch.as_tensor(row).detach().cpu() for row in values])
        if isinstance(values, Tensor):
            values = values.detach().cpu()
            return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
        return np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise PixelError(f"images must be an array or a tensor of numbers ({error})") from error
