"""float32 products as products of split matrices, on tensor cores (split.cuh says how).

Weights are split once, here; activations are split by the kernels that make them, or by
`split_rows` of linear.cu. Matrices are scaled by powers of two first, so that the low parts stay
normal numbers.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vim_embed.kernels.fused.device_code import DeviceCode, Limits


def split_rows(matrix: Tensor) -> Tensor:
    """(N, K) float32 to (N, 2 K) float16: of each 32 numbers the high parts, then the low ones."""
    high, low = split_parts(matrix)
    return torch.stack([x.view(len(matrix), -1, 32) for x in (high, low)], dim=2).flatten(1)


def split_parts(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """float32 numbers as sums of two float16 ones."""
    high = numbers.half()
    return high, (numbers - high.float()).half()


def power_near(largest: float, limit: float) -> float:
    """The power of two that brings `largest` near `limit`, not above it."""
    return 2.0 ** math.floor(math.log2(limit / largest)) if 0 < largest < math.inf else 1.0


def weight_scale(weight: Tensor) -> float:
    """What a matrix is multiplied by before it is split."""
    return power_near(float(weight.abs().max()), 2.0**14)


_LONG = 24  # groups of 32 from which on a product's inner length may go in parts
_ALONE = 0.15  # of a round: what the first block on a multiprocessor takes beyond its share


@dataclass(frozen=True)
class MmTile:
    """A variant of the split product: what a block computes, and how many a multiprocessor holds
    at most, by its registers.

    speed, adding: of its multiplying against the first's, as measured; adding to c is slower where
    a multiprocessor has nothing else to do meanwhile. Mirrors SPLIT_MM_KERNEL in split_mm.cu, and
    hopper_split_mm.cu.
    """

    rows: int
    columns: int
    threads: int
    stages: int
    blocks: int
    speed: float
    adding: float
    wgmma: bool = False

    @property
    def memory(self) -> int:
        return self.stages * ((self.rows + self.columns) * 128 + 16 * self.wgmma)

    def parts(self, rows: int, columns: int, groups: int, limits: Limits) -> int:
        """Into how many the inner length, in groups of 32, is cut: few tiles leave blocks idle.

        Each part writes a matrix, and a second kernel adds these, which a short length is not
        worth.
        """
        if not self.wgmma or groups < _LONG:
            return 1
        idle = limits.multiprocessors // self.count(rows, columns)
        return max(1, min(idle, groups // 3))

    def suits(self, rows: int, columns: int, groups: int, limits: Limits) -> bool:
        """Whether it can compute such a product on such a device, and has enough to do."""
        if self.memory > limits.shared_memory:
            return False
        if not self.wgmma:
            return True
        pieces = self.count(rows, columns) * self.parts(rows, columns, groups, limits)
        return limits.capability[0] == 9 and 3 * pieces >= limits.multiprocessors

    def count(self, rows: int, columns: int) -> int:
        return -(-rows // self.rows) * -(-columns // self.columns)

    def cost(self, rows: int, columns: int, groups: int, limits: Limits, *, add: bool) -> float:
        """Time of a product, in arbitrary units: rounds of blocks times a round's work."""
        parts = self.parts(rows, columns, groups, limits)
        held = min(self.blocks, limits.shared_memory // self.memory)
        each = -(-parts * self.count(rows, columns) // limits.multiprocessors)
        full, left = divmod(each, held)
        rounds = full + (_ALONE + (1 - _ALONE) * left / held if left else 0.0)
        work = self.rows * self.columns * held / parts
        return rounds * work / (self.adding if add else self.speed)


SPLIT_MM = (
    MmTile(96, 96, 128, 2, 2, 1.0, 1.0),
    MmTile(64, 64, 128, 2, 4, 0.92, 0.95),
    MmTile(32, 32, 128, 4, 6, 0.58, 0.62),
    MmTile(128, 192, 256, 5, 1, 1.49, 1.54, wgmma=True),
)


def split_mm_tile(
    rows: int, columns: int, groups: int, limits: Limits, *, add: bool = False
) -> MmTile:
    """The variant that should be fastest for a product (rows, columns) of 32 · groups numbers."""
    size = rows, columns, groups, limits
    fitting = [tile for tile in SPLIT_MM if tile.suits(*size)]
    return min(fitting, key=lambda tile: tile.cost(*size, add=add))


def split_mm(
    code: DeviceCode,
    limits: Limits,
    *,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    scale: float,
    add: bool = False,
    row_scales: Tensor | None = None,
    bias: Tensor | None = None,
) -> None:
    """c (rows, columns) float32 = scale · a @ b^T of split matrices; add: c += that.

    a (rows, 2 K), b (columns, 2 K): float16, as `split_rows` makes them; rows of a and c may lie
    apart. K is a multiple of 32, columns one of 8. row_scales (rows,): further factors, of rows.
    bias (columns,): added to each row, if not `add`.
    """
    rows, columns = c.shape
    groups = b.shape[1] // 64
    tile = split_mm_tile(rows, columns, groups, limits, add=add)
    parts = tile.parts(rows, columns, groups, limits)
    pieces = parts * tile.count(rows, columns)
    ending = [ctypes.c_float(scale), int(add), row_scales, bias]
    if not tile.wgmma:
        size = [rows, columns, groups, a.stride(0), c.stride(0)]
        name = f"split_mm_{tile.rows}_{tile.columns}"
        code.launch(name, (pieces, 1), tile.threads, tile.memory, [a, b, c, *size, *ending])
        return
    out = c if parts == 1 else c.new_empty(parts, rows, columns)
    size = [rows, columns, groups, out.stride(-2)]
    arguments = [code.map(a, tile.rows), code.map(b, tile.columns), out, *size]
    name = "split_mm_wgmma_parts"
    if parts > 1:
        arguments += [ctypes.c_float(1.0), 0, None, None, parts]
    elif columns % tile.columns or row_scales is not None or bias is not None:
        arguments += [*ending, 1]
    else:
        name, arguments = "split_mm_wgmma", [*arguments, *ending[:2]]
    blocks = min(pieces, limits.multiprocessors)
    code.launch(name, (blocks, 1), tile.threads, tile.memory, arguments)
    if parts > 1:
        arguments = [out, c, rows, columns, c.stride(0), *ending, parts]
        code.launch("sum_parts", (-(-rows * columns // 1024), 1), 256, 0, arguments)
