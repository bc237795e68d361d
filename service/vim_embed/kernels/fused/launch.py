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

from vim_embed.kernels.fused.compile import cubin

SOURCE = Path(__file__).with_name("vim.cu")
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_FEW_ROWS = 2048  # of `xproj`
_MAPS = 1024  # that are kept: one for each matrix's place and shape, and its copies' rows


@dataclass(frozen=True)
class Shape:
    """What the kernels are compiled for."""

    dim: int
    inner: int
    rank: int  # of the step-size projection, before padding
    dtype: torch.dtype

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
    def macros(self) -> dict[str, int]:
        rank = self.padded_rank
        return {"DTYPE": DTYPES[self.dtype], "DIM": self.dim, "INNER": self.inner, "RP": rank}

    @property
    def fuses_out(self) -> bool:
        """Whether `out_norm` can exist for this shape."""
        return self.dtype != torch.float32 and self.dim in (192, 384)

    @property
    def ranks(self) -> int:
        """Blocks of one cluster of `out_norm`: each has 192 columns."""
        return self.dim // 192

    @property
    def out_memory(self) -> int:
        """Bytes of shared memory of one `out_norm` block; mirrors `Out` in out_norm.cu."""
        return 4 * (128 + 192) * 128 + 2 * self.ranks * 128 * 4 + 2 * 4 * 8 + 16

    def xproj_memory(self, tiles: int, halves: int, splits: int) -> int:
        """Bytes of shared memory of one `xproj` block; mirrors `Stage` in xproj.cu."""
        rows = 16 * tiles * halves
        chunk = 64 * self.row + 160 * (2 if self.dtype == torch.float16 else 4)
        box = _whole(_whole((rows + 6) * 128, 1024) + 4 * chunk, 1024)
        sums = 2 * rows * (self.row + 2) * 4
        ranks = 2 * rows * (16 * self.rank_tiles + 8) * 2
        staged = 2 * ((splits + 1) // 2 * box + 8)
        return max(staged, splits * sums + ranks if splits > 1 else 0)


# Variants of the scan: channels of a warp, and steps that are fetched at once. Mirrors SCAN_KERNEL.
SCANS = {32: 8, 16: 8, 8: 16}


def scan_memory(channels: int) -> int:
    """Bytes of shared memory of one `scan` block; mirrors `Walk` in scan.cu."""
    tile, row = SCANS[channels], 2 * channels
    return 2 * (3 * tile * (2 * row + 128) + 4 * tile * row)


def _whole(value: int, unit: int) -> int:
    return -(-value // unit) * unit


class Kernels:
    """The functions of vim.cu for one shape on one device."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        self.shape = shape
        self.device = device
        properties = torch.cuda.get_device_properties(device)
        self._multiprocessors = properties.multi_processor_count
        major, minor = properties.major, properties.minor
        self.fuses_out = shape.fuses_out and major == 9
        arch = f"sm_{major}{minor}" + "a" * self.fuses_out
        code = cubin(SOURCE, shape.macros | {"OUT_NORM": int(self.fuses_out)}, arch)
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
        """patches (B, M, D), start (L, D) -> residual (B, L, D) float32, out its norm."""
        rows, length = residual.numel() // self.shape.dim, start.shape[0]
        arguments = [patches, start, residual, weight, out, rows, length, ctypes.c_float(eps)]
        self._launch("first_norm", (-(-rows // 8), 1), 256, 0, arguments)

    def add_norm(
        self,
        *,
        hidden: Tensor | None,
        residual: Tensor,
        weight: Tensor,
        out: Tensor,
        eps: float,
        permuted: bool = False,
    ) -> None:
        """residual (B L, D) float32 += hidden (B L, D); out = its RMS norm; out may be hidden.

        permuted: hidden's columns are in the order of `permuted_rows`.
        """
        rows = residual.numel() // self.shape.dim
        given = ctypes.c_void_p(0) if hidden is None else hidden
        arguments = [given, residual, weight, out, rows, ctypes.c_float(eps)]
        name = "add_permuted_norm" if permuted else "add_norm"
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
        clusters = min(-(-rows // 128), self._multiprocessors // ranks)
        maps = [self._map(mixed, 128), self._map(w_out, 192)]
        arguments = [*maps, residual, weight, out, rows, ctypes.c_float(eps)]
        self._launch("out_norm", (clusters * ranks, 1), 256, self.shape.out_memory, arguments)

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
    ) -> None:
        """x in xz (B L, 2E) -> bc (B L, 2, 32) float32, steps (B L, 2, E) float16 bits.

        x_proj, dt_proj: packed. only: the one token whose result is needed, if not -1: rows behind
        it may stay unwritten.
        """
        rows = len(xz)
        variant = self._xproj_variant(rows, length)
        tiles, halves, splits = variant
        grid = (-(-rows // (16 * tiles * halves)), 1)
        name = "xproj_" + "".join(map(str, variant))
        memory = self.shape.xproj_memory(*variant)
        x_map = self._map(xz, 16 * tiles * halves + 6)
        arguments = [x_map, x_proj, dt_proj, bc, steps, length, rows, only]
        self._launch(name, grid, 64 * halves * splits, memory, arguments)

    def _xproj_variant(self, rows: int, length: int) -> tuple[int, int, int]:
        """Row tiles of a warp, warps of rows, warps that share a row: the fewer the rows, the more
        warps to a row, as long as all blocks run at once."""
        if rows <= _FEW_ROWS and self.shape.inner % 128 == 0:
            return 1, 1, 4
        # a lane of two row tiles has four rows, which may begin one other image, not two
        if rows <= 16 * 4 * self._multiprocessors or length < 3:
            return 1, 1, 2
        return (2, 1, 2) if rows <= 32 * 3 * self._multiprocessors else (2, 2, 1)

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
    ) -> None:
        """Both scans with skip, gate and average; steps[:, 0] becomes the result (B L, E).

        channels: of a warp, a key of SCANS. only: the one token whose result is needed, or -1.
        """
        grid = (self.shape.inner // channels, len(xz) // length)
        arguments = [xz, bc, steps, decay, taps, vectors, length, only]
        self._launch(f"scan_{channels}", grid, 64, scan_memory(channels), arguments)

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
