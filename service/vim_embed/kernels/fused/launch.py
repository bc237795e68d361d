"""Loads the compiled kernels of one model shape on one device and launches them.

The methods of `Kernels` take the tensors of one kernel by name, allocate nothing and never
synchronise. Shapes: B images, L tokens, E inner width.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vim_embed.kernels.fused.compile import compiled

SOURCE = Path(__file__).with_name("vim.cu")
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_FEW_ROWS = 2048  # of `xproj`
_MAPS = 1024  # that are kept: one for each matrix's place and shape, and its copies' rows


@dataclass(frozen=True)
class Limits:
    """What a device can do, by which kernels and their variants are chosen, never by its name."""

    capability: tuple[int, int]
    multiprocessors: int
    shared_memory: int  # bytes that one block may have

    @staticmethod
    def of(device: torch.device) -> Limits:
        """Of a CUDA device that is there."""
        found: Any = torch.cuda.get_device_properties(device)
        memory = int(found.shared_memory_per_block_optin)
        return Limits((found.major, found.minor), found.multi_processor_count, memory)


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
        major, minor = self.capability
        return f"sm_{major}{minor}" + "a" * self.wgmma

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

    def xproj_memory(self, tiles: int, halves: int, splits: int) -> int:
        """Bytes of shared memory of one `xproj` block; mirrors `Stage` in its source."""
        shape, rows = self.shape, 16 * tiles * halves
        terms = 1 if shape.half else 2
        wide = 2 if shape.dtype == torch.float16 else 4
        chunk = 64 * shape.row * terms + 160 * wide
        sums = splits * 2 * rows * (shape.row + 2) * 4
        ranks = 2 * rows * (16 * shape.rank_tiles + 8)
        if self.bulk_xproj:
            box = _whole(_whole((rows + 6) * 128, 1024) + 4 * chunk, 1024)
            staged = 2 * ((splits + 1) // 2 * box + 8)
            return max(staged, sums + 2 * ranks if splits > 1 else 0)
        box = (rows + 6) * 64 * terms + (2 * chunk if splits == 1 else 0)
        return max(2 * splits * box, sums + 4 * ranks if splits > 1 else 0)

    def scan_memory(self, channels: int) -> int:
        """Bytes of shared memory of one `scan` block; mirrors `Walk` in scan.cu."""
        tile, row = SCANS[channels], channels * (2 if self.shape.half else 4)
        return 2 * (3 * tile * (2 * row + 128) + 4 * tile * row)

    def xproj_variant(self, rows: int, length: int, limits: Limits) -> tuple[int, int, int]:
        """Row tiles of a warp, warps of rows, warps that share a row: the fewer the rows, the more
        warps to a row, as long as all blocks run at once and the device has the memory."""
        few = rows <= _FEW_ROWS and self.shape.inner % 128 == 0
        if few and self.xproj_memory(1, 1, 4) <= limits.shared_memory:
            return 1, 1, 4
        # a lane of two row tiles has four rows, which may begin one other image, not two
        if rows <= 16 * 4 * limits.multiprocessors or length < 3:
            return 1, 1, 2
        return (2, 1, 2) if rows <= 32 * 3 * limits.multiprocessors else (2, 2, 1)


# Variants of the scan: channels of a warp, and steps that are fetched at once. Mirrors SCAN_KERNEL.
SCANS = {32: 8, 16: 8, 8: 16}


@dataclass(frozen=True)
class MmTile:
    """A variant of the split product: what a block computes, and how many a multiprocessor holds.

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

    def suits(self, rows: int, columns: int, limits: Limits) -> bool:
        """Whether it can compute such a product on such a device, and has enough to do."""
        if self.memory > limits.shared_memory:
            return False
        if not self.wgmma:
            return True
        possible = limits.capability[0] == 9 and columns % self.columns == 0
        return possible and 3 * self.count(rows, columns) >= limits.multiprocessors

    def count(self, rows: int, columns: int) -> int:
        return -(-rows // self.rows) * -(-columns // self.columns)

    def cost(self, rows: int, columns: int, limits: Limits, *, add: bool) -> float:
        """Time of a product, in arbitrary units: full rounds of blocks times a block's work."""
        rounds = -(-self.count(rows, columns) // (limits.multiprocessors * self.blocks))
        work = self.rows * self.columns * self.blocks
        return rounds * work / (self.adding if add else self.speed)


SPLIT_MM = (
    MmTile(128, 192, 256, 2, 1, 1.0, 0.65),
    MmTile(64, 128, 256, 4, 2, 0.95, 0.95),
    MmTile(64, 64, 128, 4, 3, 0.9, 0.9),
    MmTile(32, 32, 128, 6, 4, 0.55, 0.55),
    MmTile(128, 192, 256, 5, 1, 2.1, 2.0, wgmma=True),
)


def split_mm_tile(rows: int, columns: int, limits: Limits, *, add: bool = False) -> MmTile:
    """The variant that should be fastest for a product (rows, columns)."""
    fitting = [tile for tile in SPLIT_MM if tile.suits(rows, columns, limits)]
    return min(fitting, key=lambda tile: tile.cost(rows, columns, limits, add=add))


def _whole(value: int, unit: int) -> int:
    return -(-value // unit) * unit


class Kernels:
    """The functions of vim.cu for one shape on one device."""

    def __init__(self, shape: Shape, device: torch.device, limits: Limits | None = None) -> None:
        """limits: run the kernels of another, older kind of device, as that would choose them."""
        self.shape = shape
        self.device = device
        own = Limits.of(device)
        self.limits = limits or own
        self.program = program = Program(shape, self.limits.capability)
        self.fuses_out = program.fuses_out
        architecture = program.architecture
        if program.capability != own.capability:  # the driver translates it
            architecture = architecture.replace("sm_", "compute_")
        code = compiled(SOURCE, program.macros, architecture)
        from cuda.bindings import driver

        self._driver: Any = driver
        with torch.cuda.device(device):
            torch.cuda.current_stream(device).synchronize()  # makes the context current
            self._module = self._checked(driver.cuModuleLoadData(code))
        self._functions: dict[str, Any] = {}
        self._maps: dict[tuple[int, ...], Any] = {}

    def patchify(
        self,
        *,
        pixels: Tensor,
        out: Tensor,
        grid: tuple[int, int],
        patch: int,
        stride: int,
        scale: Sequence[float],
        offset: Sequence[float],
    ) -> None:
        """pixels (B, 3, H, W) float32 or uint8, by channel · scale + offset -> out (B · rows ·
        columns, 3 patch patch)."""
        size = [*pixels.shape[-2:], *grid, patch, stride]
        total = out.numel() // 8
        factors = [ctypes.c_float(value) for value in (*scale, *offset)]
        arguments = [pixels, out, *size, *factors, ctypes.c_longlong(total)]
        name = "patchify_bytes" if pixels.dtype == torch.uint8 else "patchify"
        self._launch(name, (-(-total // 256), 1), 256, 0, arguments)

    def first_norm(
        self,
        *,
        patches: Tensor,
        start: Tensor,
        residual: Tensor,
        weight: Tensor,
        out: Tensor,
        eps: float,
    ) -> None:
        """patches (B, M, D), start (L, D) -> residual (B, L, D) float32, out its norm, split where
        the shape is."""
        rows, length = residual.numel() // self.shape.dim, start.shape[0]
        arguments = [patches, start, residual, weight, out, rows, length, ctypes.c_float(eps)]
        name = "first_split_norm" if self.shape.split else "first_norm"
        self._launch(name, (-(-rows // 8), 1), 256, 0, arguments)

    def add_norm(
        self,
        *,
        hidden: Tensor | None,
        residual: Tensor,
        weight: Tensor,
        out: Tensor,
        eps: float,
        permuted: bool = False,
        split: bool = False,
    ) -> None:
        """residual (B L, D) float32 += hidden (B L, D); out = its RMS norm; out may be hidden.

        permuted: hidden's columns are in the order of `permuted_rows`. split: out gets split rows.
        """
        rows = residual.numel() // self.shape.dim
        given = ctypes.c_void_p(0) if hidden is None else hidden
        arguments = [given, residual, weight, out, rows, ctypes.c_float(eps)]
        name = "add_permuted_norm" if permuted else "add_split_norm" if split else "add_norm"
        self._launch(name, (-(-rows // 8), 1), 256, 0, arguments)

    def out_norm(
        self,
        *,
        mixed: Tensor,
        w_out: Tensor,
        residual: Tensor,
        weight: Tensor,
        out: Tensor,
        eps: float,
    ) -> None:
        """residual (B L, D) float32 += mixed (B L, E) @ w_out^T; out (B L, D) = its RMS norm.

        w_out (D, E): rows in the order of `permuted_rows`. weight (D,): the norm's.
        """
        rows, ranks = len(mixed), self.shape.ranks
        clusters = min(-(-rows // 128), self.limits.multiprocessors // ranks)
        maps = [self._map(mixed, 128), self._map(w_out, 192)]
        arguments = [*maps, residual, weight, out, rows, ctypes.c_float(eps)]
        self._launch("out_norm", (clusters * ranks, 1), 256, self.shape.out_memory, arguments)

    def split_mm(self, *, a: Tensor, b: Tensor, c: Tensor, scale: float, add: bool = False) -> None:
        """c (rows, columns) float32 = scale · a @ b^T of split matrices; add: c += that.

        a (rows, 2 K), b (columns, 2 K): float16, as `split_rows` makes them; rows of a and c may
        lie apart.
        """
        rows, columns = c.shape
        tile = split_mm_tile(rows, columns, self.limits, add=add)
        blocks, groups = tile.count(rows, columns), b.shape[1] // 64
        ending = [ctypes.c_float(scale), int(add)]
        if tile.wgmma:
            maps = [self._map(a, tile.rows), self._map(b, tile.columns)]
            arguments = [*maps, c, rows, columns, groups, c.stride(0), *ending]
            name, blocks = "split_mm_wgmma", min(blocks, self.limits.multiprocessors)
        else:
            arguments = [a, b, c, rows, columns, groups, a.stride(0), c.stride(0), *ending]
            name = f"split_mm_{tile.rows}_{tile.columns}"
        self._launch(name, (blocks, 1), tile.threads, tile.memory, arguments)

    def xproj(
        self,
        *,
        xz: Tensor,
        x_proj: Tensor,
        dt_proj: Tensor,
        bc: Tensor,
        steps: Tensor,
        length: int,
        only: int = -1,
        x_scale: float = 1.0,
        dt_scale: float = 1.0,
    ) -> None:
        """x in xz (B L, 2E) -> bc (B L, 2, 32) float32, steps (B L, 2, E) float16 bits or float32.

        x_proj, dt_proj: packed, and in float32 what undoes the scales of their weights. only: the
        one token whose result is needed, if not -1: rows behind it may stay unwritten.
        """
        rows, program = len(xz), self.program
        variant = program.xproj_variant(rows, length, self.limits)
        tiles, halves, splits = variant
        grid = (-(-rows // (16 * tiles * halves)), 1)
        name = "xproj_" + "".join(map(str, variant))
        x = self._map(xz, 16 * tiles * halves + 6) if program.bulk_xproj else xz
        arguments = [x, x_proj, dt_proj, bc, steps, length, rows, only]
        if not program.bulk_xproj:
            arguments += [ctypes.c_float(x_scale), ctypes.c_float(dt_scale)]
        memory = program.xproj_memory(*variant)
        self._launch(name, grid, 64 * halves * splits, memory, arguments)

    def scan(
        self,
        *,
        channels: int,
        xz: Tensor,
        bc: Tensor,
        steps: Tensor,
        decay: Tensor,
        taps: Tensor,
        vectors: Tensor,
        length: int,
        only: int = -1,
        mixed: Tensor | None = None,
    ) -> None:
        """Both scans with skip, gate and average; steps[:, 0] becomes the result (B L, E).

        channels: of a warp, a key of SCANS. only: the one token whose result is needed, or -1.
        mixed: in float32 takes the result instead, as split rows (B L, 2E) float16.
        """
        grid = (self.shape.inner // channels, len(xz) // length)
        arguments: list[Any] = [xz, bc, steps, decay, taps, vectors, length, only]
        if mixed is not None:
            arguments[3:3] = [mixed]
            arguments[-1:-1] = [mixed.stride(0)]
        memory = self.program.scan_memory(channels)
        self._launch(f"scan_{channels}", grid, 64, memory, arguments)

    def conv_silu(
        self, *, xz: Tensor, taps: Tensor, vectors: Tensor, u: Tensor, length: int
    ) -> None:
        """float32: x in xz (B L, 2E) -> u (2, B L, E)."""
        rows = len(xz)
        grid = (-(-rows * (self.shape.inner // 4) // 256), 1)
        self._launch("conv_silu", grid, 256, 0, [xz, taps, vectors, u, length, rows])

    def scan_float(
        self,
        *,
        xz: Tensor,
        u: Tensor,
        delta: Tensor,
        projected: Tensor,
        decay: Tensor,
        vectors: Tensor,
        out: Tensor,
        length: int,
    ) -> None:
        """float32: as `scan`, from u and delta (2, B L, E), delta before softplus, and the
        projected rows (2, B L, ROW), to out (B L, E)."""
        rows = len(xz)
        grid = (self.shape.inner // 32, rows // length)
        arguments = [xz, u, delta, projected, decay, vectors, out, length, rows]
        self._launch("scan", grid, 64, 0, arguments)

    def _launch(
        self, name: str, grid: tuple[int, int], threads: int, memory: int, arguments: Sequence[Any]
    ) -> None:
        values: list[Any] = []
        types: list[Any] = []
        for argument in arguments:
            if isinstance(argument, Tensor):
                values.append(argument.data_ptr())
                types.append(ctypes.c_void_p)
            elif isinstance(argument, self._driver.CUtensorMap):
                values.append(argument)
                types.append(None)
            elif isinstance(argument, int):
                values.append(argument)
                types.append(ctypes.c_int)
            else:
                values.append(argument.value or 0)
                types.append(type(argument))
        stream = torch.cuda.current_stream(self.device).cuda_stream
        function = self._function(name, memory)
        sizes = (*grid, 1, threads, 1, 1, memory)
        parameters = (tuple(values), tuple(types))
        self._checked(self._driver.cuLaunchKernel(function, *sizes, stream, parameters, 0))

    def _map(self, matrix: Tensor, rows: int) -> Any:
        """For copies of `rows` rows and 64 columns of a half-precision matrix, swizzled."""
        key = (matrix.data_ptr(), *matrix.shape, matrix.stride(0), rows)
        known = self._maps.get(key)
        if known is None:
            d = self._driver
            kinds = d.CUtensorMapDataType
            bf16 = matrix.dtype == torch.bfloat16
            known = self._checked(
                d.cuTensorMapEncodeTiled(
                    kinds.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                    if bf16
                    else kinds.CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
                    2,
                    matrix.data_ptr(),
                    [d.cuuint64_t(matrix.shape[1]), d.cuuint64_t(matrix.shape[0])],
                    [d.cuuint64_t(matrix.stride(0) * 2)],
                    [d.cuuint32_t(64), d.cuuint32_t(rows)],
                    [d.cuuint32_t(1), d.cuuint32_t(1)],
                    d.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
                    d.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B,
                    d.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                    d.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
                )
            )
            if len(self._maps) >= _MAPS:
                self._maps.clear()
            self._maps[key] = known
        return known

    def _function(self, name: str, memory: int) -> Any:
        function = self._functions.get(name)
        if function is None:
            driver = self._driver
            function = self._checked(driver.cuModuleGetFunction(self._module, name.encode()))
            if memory > 48 * 1024:
                limit = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                self._checked(driver.cuFuncSetAttribute(function, limit, memory))
            self._functions[name] = function
        return function

    def _checked(self, result: tuple[Any, ...]) -> Any:
        status, *values = result
        if int(status):
            raise RuntimeError(f"CUDA driver: {status}")
        return values[0] if values else None
