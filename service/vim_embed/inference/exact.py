"""Exact mode: an image's bytes do not depend on what shares its batch.

Libraries choose their kernels by shape, so every forward has one fixed number of rows, the last
filled up. Whether a row of such a batch depends on its place or its mates is tried out, not
assumed. Knows no model.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

EXACT_ROWS = {"cpu": 1, "cuda": 32}  # of every batch at the native size, unless set

# (rows, 3, H, W) on the device to named (rows, D) there
Forward = Callable[[Tensor], dict[str, Tensor]]


def in_fixed_batches(forward: Forward, pixels: Tensor, rows: int) -> dict[str, Tensor]:
    """`forward` of (B, 3, H, W) in batches of exactly `rows`; named (B, D) on the host.

    Each batch is in memory of its own: one shape, one alignment.
    """
    parts = []
    for part in torch.split(pixels, rows):
        batch = part.new_zeros(rows, *part.shape[1:])
        batch[: len(part)] = part
        found = forward(batch)
        parts.append({name: out[: len(part)].to("cpu", copy=True) for name, out in found.items()})
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def rows_are_independent(forward: Forward, like: Tensor, rows: int) -> bool:
    """Whether rows of a batch have the same bytes at other places, with other mates.

    Tried with seeded images of `like`'s size, dtype and device; three forwards.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    shape = (rows, *like.shape[1:])
    images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8, device="cpu")
    pixels = images.to(like.device)
    if like.is_floating_point():
        pixels = (pixels.float() / 64 - 2).to(like.dtype)
    middle, shift = rows // 2, rows // 2 + 1
    whole = in_fixed_batches(forward, pixels, rows)
    rolled = in_fixed_batches(forward, pixels.roll(shift, 0), rows)
    alone = in_fixed_batches(forward, pixels[middle : middle + 1], rows)
    return all(
        torch.equal(out, rolled[name].roll(-shift, 0))
        and torch.equal(out[middle : middle + 1], alone[name])
        for name, out in whole.items()
    )
