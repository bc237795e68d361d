"""Arrays with a mask: numpy drops it in silence where any other kind of array is made of one."""

from __future__ import annotations

from typing import Any

import numpy as np


def about_mask(values: Any) -> str:
    """Why a masked array, or a list with some, is not taken, with the fix; "" for all others, and
    where nothing is masked."""
    parts = values if isinstance(values, (list, tuple)) else [values]
    masked = sum(
        np.count_nonzero(part.mask) for part in parts if isinstance(part, np.ma.MaskedArray)
    )
    if not masked:
        return ""
    return (
        f"{masked} numbers of the array are masked, and a model takes none without a value: fill "
        "them first, for example array.filled(0)"
    )
