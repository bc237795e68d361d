"""The kernels of one model shape: how they are compiled, which of them suits how many rows, and how
much shared memory each takes.

Knows the sources' macros and constants, and what a device can do; touches none.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from vim_embed.kernels.fused.device_code import Limits, architecture_of

SOURCE = Path(__file__).with_name("vim.cu")
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_FEW_ROWS = 2048  # of `xproj`
# Blocks of a cluster of `xproj`; mirrors XPROJ_CLUSTER_KERNEL.
XPROJ_CLUSTERS = (3, 6)
# Blocks of a cluster of `out_in`, by model width; mirrors `OutIn`.
OUT_IN_BLOCKS = {192: 6, 384: 8}
# Variants of the scan: channels of a warp, and steps that are fetched at once. Mirrors SCAN_KERNEL.
SCANS = {32: 8, 16: 8, 8: 16}
# Channels of a block that scans in segments; mirrors SEGMENT_SCAN_KERNEL.
SEGMENT_SCANS = (4, 8)


@dataclass(frozen=True)
class Shape:
    """What the kernels are compiled for.

    split: float32 by split products on tensor cores (split.cuh), not by plain ones.
    """

    dim: int
    inner: int
    rank: int  # of the step-size projection, before padding
    dtype: torch.dtype
    split: bool = False

    @property
    def half(self) -> bool:
        return self.dtype != torch.float32

    @property
    def padded_rank(self) -> int:
        return -(-self.rank // 8) * 8

    @property
    def row(self) -> int:
        """Length of one projected row: step size, B, C."""
        return self.padded_rank + 32

    @property
    def rank_tiles(self) -> int:
        return -(-self.padded_rank // 16)

    @property
    def fuses_out(self) -> bool:
        """Whether `out_norm` can exist for this shape."""
        return self.half and self.dim in (192, 384)

    @property
    def ranks(self) -> int:
        """Blocks of one cluster of `out_norm`: each has 192 columns."""
        return self.dim // 192

    @property
    def out_memory(self) -> int:
        """Bytes of shared memory of one `out_norm` block; mirrors `Out` in out_norm.cu."""
        return 4 * (128 + 192) * 128 + 2 * self.ranks * 128 * 4 + 2 * 4 * 8 + 16


@dataclass(frozen=True)
class Program:
    """The kernels of one shape for one compute capability: how they are compiled and launched."""

    shape: Shape
    capability: tuple[int, int]

    @property
    def bulk_xproj(self) -> bool:
        """Whether `xproj` copies by the copy engine (xproj.cu), or as portable_xproj.cu does."""
        return self.shape.half and self.capability >= (9, 0)

    @property
    def wgmma(self) -> bool:
        """Whether there are kernels that take Hopper's wgmma."""
        return self.capability[0] == 9 and (self.shape.fuses_out or self.shape.split)

    @property
    def fuses_out(self) -> bool:
        """Whether there is `out_norm`."""
        return self.wgmma and self.shape.half

    @property
    def architecture(self) -> str:
        return architecture_of(self.capability, wgmma=self.wgmma)

    @property
    def macros(self) -> dict[str, int]:
        shape = self.shape
        return {
            "DTYPE": DTYPES[shape.dtype],
            "DIM": shape.dim,
            "INNER": shape.inner,
            "RP": shape.padded_rank,
            "SPLIT_PRODUCTS": int(shape.split),
            "BULK": int(self.capability >= (9, 0)),
            "WGMMA": int(self.wgmma),
        }

    def xproj_memory(self, tiles: int, halves: int, splits: int, blocks: int = 1) -> int:
        """Bytes of shared memory of one `xproj` block; mirrors `Stage` in its source."""
        shape, rows = self.shape, 16 * tiles * halves
        terms = 1 if shape.half else 2
        wide = 2 if shape.dtype == torch.float16 else 4
        chunk = 64 * shape.row * terms + 160 * wide
        sums = (splits + (blocks > 1)) * 2 * rows * (shape.row + 2) * 4
        ranks = 2 * rows * (16 * shape.rank_tiles + 8)
        if self.bulk_xproj:
            box = whole(whole((rows + 6) * 128, 1024) + 4 * chunk, 1024)
            staged = 2 * ((splits + 1) // 2 * box + 8)
            return max(staged, sums + 2 * ranks if splits > 1 else 0)
        box = (rows + 6) * 64 * terms + (2 * chunk if splits == 1 else 0)
        return max(2 * splits * box, sums + 4 * ranks if splits > 1 else 0)

    def scan_memory(self, channels: int) -> int:
        """Bytes of shared memory of one `scan` block; mirrors `Walk` in scan.cu."""
        tile, row = SCANS[channels], channels * (2 if self.shape.half else 4)
        return 2 * (3 * tile * (2 * row + 128) + 4 * tile * row)

    def segment_memory(self, channels: int, steps_each: int, segments: int) -> int:
        """Bytes of shared memory of one `segment_scan` block; mirrors `Segment` in its source."""
        row = channels * (2 if self.shape.half else 4)
        own = steps_each * (128 + channels * 12 + row) + channels * 17 * 4 + (steps_each + 3) * row
        return 2 * segments * whole(own, 16)

    def xproj_variant(self, rows: int, length: int, limits: Limits) -> tuple[int, int, int, int]:
        """Row tiles of a warp, warps of rows, warps and blocks that share a row: the fewer the
        rows, the more to a row, as long as all blocks run at once and the device has the memory."""
        few = rows <= _FEW_ROWS and self.shape.inner % 128 == 0
        if few:
            blocks = self._xproj_blocks(-(-rows // 16), limits)
            if self.xproj_memory(1, 1, 4, blocks) <= limits.shared_memory:
                return 1, 1, 4, blocks
        # a lane of two row tiles has four rows, which may begin one other image, not two
        if rows <= 16 * 4 * limits.multiprocessors or length < 3:
            return 1, 1, 2, 1
        return (2, 1, 2, 1) if rows <= 32 * 3 * limits.multiprocessors else (2, 2, 1, 1)

    def _xproj_blocks(self, tiles: int, limits: Limits) -> int:
        """Blocks of a cluster that share the channels of 16 rows, each of the `tiles`.

        As many as the device runs at once; a fifth more blocks than that still pay where each has
        256 channels or more.
        """
        if self.capability < (9, 0) or not limits.clusters:
            return 1
        inner, most = self.shape.inner, limits.multiprocessors
        can = [n for n in XPROJ_CLUSTERS if inner % (128 * n) == 0]
        some = [n for n in can[:1] if 5 * tiles * n <= 6 * most and inner >= 256 * n]
        return max([n for n in can if tiles * n <= most] or some, default=1)

    @property
    def out_in_blocks(self) -> int:
        """Blocks of a cluster of `out_in`, or 0: there is none."""
        shape = self.shape
        fits = shape.inner == 2 * shape.dim and (shape.half or shape.split)
        return OUT_IN_BLOCKS.get(shape.dim, 0) if fits and self.capability >= (9, 0) else 0

    def has_out_in(self, rows: int, limits: Limits) -> bool:
        """Whether `out_in` takes so few rows: those whose blocks the device runs at once."""
        blocks = self.out_in_blocks * -(-rows // 16)
        resident = 2 if self.shape.half and self.shape.dim == 192 else 1
        return limits.clusters and 0 < blocks <= resident * limits.multiprocessors

    def segment_variant(self, images: int, length: int, limits: Limits) -> tuple[int, int] | None:
        """Channels of a block and segments of a walk, where the scan of so few images goes in
        segments: where its blocks are no more than the device runs at once. None: it does not.
        """
        segments = min(8, -(-length // 40))
        steps_each = whole(-(-length // segments), 8)
        if segments < 3 or steps_each > 64:
            return None
        for channels in SEGMENT_SCANS:
            memory = self.segment_memory(channels, steps_each, -(-length // steps_each))
            blocks = images * self.shape.inner // channels
            if blocks <= limits.multiprocessors and memory <= limits.shared_memory:
                return channels, segments
        return None


def whole(value: int, unit: int) -> int:
    """`value`, rounded up to whole units."""
    return -(-value // unit) * unit
