"""Loads the compiled kernels of one model shape on one device and launches them.

The wrappers allocate nothing and never synchronise. Shapes: B images, L tokens, E inner width.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vim_embed.kernels.fused.build import cubin

SOURCE = Path(__file__).with_name("vim.cu")
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
# Rows of `xproj`: few are better spread over many blocks and warps.
_FEW_ROWS, _MANY_ROWS = 2048, 16384


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

    def xproj_memory(self, halves: int, splits: int) -> int:
        """Bytes of shared memory of one `xproj` block; mirrors `Stage` in vim.cu."""
        rows = 32 * halves
        stage = 2 * (64 * self.row + 512 + 128) + (rows + 6) * 80
        sums = 2 * rows * (self.row + 2) * 4
        ranks = 2 * rows * (16 * self.rank_tiles + 8) * 2
        return 128 + max(splits * 3 * stage, splits * sums + ranks)


# Variants of the scan: channels of a warp, and steps that are fetched at once. Mirrors SCAN_KERNEL.
SCANS = {64: 8, 32: 8, 16: 8, 8: 16}


def scan_memory(channels: int) -> int:
    """Bytes of shared memory of one `scan` block; mirrors `Walk` in vim.cu."""
    tile, row = SCANS[channels], 2 * channels
    return 2 * (3 * tile * (2 * row + 128) + 4 * tile * row)


def padded_length(length: int) -> int:
    """Rows an image takes in `xproj`: room for the convolution's zeros."""
    return -(-(length + 3) // 4) * 4


class Kernels:
    """The functions of vim.cu for one shape on one device."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        self.shape = shape
        self.device = device
        major, minor = torch.cuda.get_device_capability(device)
        code = cubin(SOURCE, shape.macros, f"sm_{major}{minor}")
        from cuda.bindings import driver

        self._driver: Any = driver
        with torch.cuda.device(device):
            torch.cuda.current_stream(device).synchronize()  # makes the context current
            self._module = self._checked(driver.cuModuleLoadData(code))
        self._functions: dict[str, Any] = {}

    def patchify(self, pixels: Tensor, out: Tensor, grid: tuple[int, int], p: int, s: int) -> None:
        """pixels (B, 3, H, W) float32 -> out (B · rows · columns, 3 p p)."""
        total = out.numel() // 8
        height, width = pixels.shape[-2:]
        arguments = [pixels, out, height, width, *grid, p, s, ctypes.c_longlong(total)]
        self._launch("patchify", (-(-total // 256), 1), 256, 0, arguments)

    def first_norm(
        self,
        patches: Tensor,
        start: Tensor,
        residual: Tensor,
        weight: Tensor,
        out: Tensor,
        e: float,
    ) -> None:
        """patches (B, M, D), start (L, D) -> residual (B, L, D) float32, out its norm."""
        rows, length = residual.numel() // self.shape.dim, start.shape[0]
        arguments = [patches, start, residual, weight, out, rows, length, ctypes.c_float(e)]
        self._launch("first_norm", (-(-rows // 8), 1), 256, 0, arguments)

    def add_norm(
        self, hidden: Tensor | None, residual: Tensor, weight: Tensor, out: Tensor, e: float
    ) -> None:
        """residual (B L, D) float32 += hidden (B L, D); out = its RMS norm; out may be hidden."""
        rows = residual.numel() // self.shape.dim
        given = ctypes.c_void_p(0) if hidden is None else hidden
        arguments = [given, residual, weight, out, rows, ctypes.c_float(e)]
        self._launch("add_norm", (-(-rows // 8), 1), 256, 0, arguments)

    def xproj(self, tensors: Sequence[Tensor], length: int) -> None:
        """tensors: xz (B L, 2E), x_proj, dt_proj, dt_bias, bc (B L, 2, 32), steps (B L, 2, E)."""
        padded = padded_length(length)
        total = tensors[0].shape[0] // length * padded
        halves, splits = self._xproj_shape(total)
        grid = (-(-total // (32 * halves)), 1)
        memory = self.shape.xproj_memory(halves, splits)
        name = f"xproj_{halves}{splits}"
        self._launch(name, grid, 64 * halves * splits, memory, [*tensors, length, padded, total])

    def _xproj_shape(self, total: int) -> tuple[int, int]:
        """A block's rows / 32 and the warps that share a row, for `total` padded rows."""
        if total >= _MANY_ROWS:
            return 2, 1
        return (1, 4) if total <= _FEW_ROWS and self.shape.inner % 128 == 0 else (1, 2)

    def scan(self, channels: int, tensors: Sequence[Tensor], length: int, only: int = -1) -> None:
        """tensors: xz, bc, steps (steps[:, 0] becomes the result), decay, taps, vectors.

        channels: of a warp, a key of SCANS. only: the one token whose result is needed.
        """
        grid = (self.shape.inner // channels, tensors[0].shape[0] // length)
        self._launch(f"scan_{channels}", grid, 64, scan_memory(channels), [*tensors, length, only])

    def conv_silu(self, xz: Tensor, taps: Tensor, vectors: Tensor, u: Tensor, length: int) -> None:
        """float32: xz (B L, 2E) -> u (2, B L, E)."""
        rows = xz.shape[0]
        grid = (-(-rows * (self.shape.inner // 4) // 256), 1)
        self._launch("conv_silu", grid, 256, 0, [xz, taps, vectors, u, length, rows])

    def scan_float(self, tensors: Sequence[Tensor], length: int) -> None:
        """float32. tensors: xz, u, delta, dbc, decay, vectors, out (B L, E)."""
        rows = tensors[0].shape[0]
        grid = (self.shape.inner // 32, rows // length)
        self._launch("scan", grid, 64, 0, [*tensors, length, rows])

    def _launch(
        self, name: str, grid: tuple[int, int], threads: int, memory: int, arguments: Sequence[Any]
    ) -> None:
        values: list[Any] = []
        types: list[Any] = []
        for argument in arguments:
            if isinstance(argument, Tensor):
                values.append(argument.data_ptr())
                types.append(ctypes.c_void_p)
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
