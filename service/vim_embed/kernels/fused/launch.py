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
PAIRS = 2
_XPROJ_ROWS = 64


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
    def splits(self) -> int:
        """Warps of `xproj` that share the channels of the same rows."""
        return 3 if self.padded_rank > 32 and self.inner % 96 == 0 else 2

    def xproj_memory(self) -> int:
        """Bytes of shared memory of one `xproj` block; mirrors `Stage` in vim.cu."""
        stage = 2 * (64 * self.row + 512 + 128) + (_XPROJ_ROWS + 6) * 80
        sums = 2 * _XPROJ_ROWS * (self.row + 2) * 4
        return 128 + self.splits * max(3 * stage, sums)

    def scan_memory(self, tiles: int) -> int:
        """Bytes of shared memory of one `scan` block; mirrors `Layout` in vim.cu."""
        x_row, step_row = 32 * tiles + 16, 128 * tiles + 16
        projected_row = 2 * self.row + (0 if self.row % 16 else 16)
        warp = 40 * x_row + 16 * projected_row + 8 * step_row
        weights = 512 * tiles + tiles * self.rank_tiles * 512
        return 2 * weights + 8 * step_row + 2 * PAIRS * warp


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
        self, hidden: Tensor, residual: Tensor, weight: Tensor, out: Tensor, e: float, keep: bool
    ) -> None:
        """residual += hidden (kept in memory if `keep`), out = its norm; out may be hidden."""
        rows = residual.numel() // self.shape.dim
        arguments = [hidden, residual, weight, out, rows, ctypes.c_float(e), int(keep)]
        self._launch("add_norm", (-(-rows // 8), 1), 256, 0, arguments)

    def xproj(self, xz: Tensor, weights: Tensor, dbc: Tensor, length: int) -> None:
        """xz (B L, 2E), packed weights -> dbc (B L, 2, row)."""
        padded = padded_length(length)
        total = xz.shape[0] // length * padded
        grid = (-(-total // _XPROJ_ROWS), 1)
        arguments = [xz, weights, dbc, length, padded, total]
        self._launch("xproj", grid, 128 * self.shape.splits, self.shape.xproj_memory(), arguments)

    def scan(self, tiles: int, tensors: Sequence[Tensor], length: int) -> None:
        """tensors: xz, dbc, decay, taps, vectors, dt_weight, out (B L, E).

        tiles: channels a warp / 16 (4, 2 or 1).
        """
        images = tensors[0].shape[0] // length
        grid = (self.shape.inner // (16 * tiles), -(-images // PAIRS))
        memory = self.shape.scan_memory(tiles)
        self._launch(f"scan_{tiles}", grid, 64 * PAIRS, memory, [*tensors, length, images])

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
                values.append(argument.value)
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
