"""Loads the compiled kernels of one model shape on one device and launches them.

The methods of `Kernels` take the tensors of one kernel by name, allocate nothing and never
synchronise. Shapes: B images, L tokens, E inner width.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vim_embed.kernels.fused.device_code import DeviceCode, Limits
from vim_embed.kernels.fused.program import SOURCE, Program, Shape, whole
from vim_embed.kernels.fused.split_mm import split_mm


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
        older = program.capability != own.capability
        code = DeviceCode(SOURCE, program.macros, program.architecture, device, translated=older)
        self.code = code
        self.xproj_blocks: int | None = None  # of a cluster; None: chosen by shape

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
        columns, 3 patch patch). int16: bits of such numbers already, in half precision alone."""
        size = [*pixels.shape[-2:], *grid, patch, stride]
        total = out.numel() // 8
        factors = [ctypes.c_float(value) for value in (*scale, *offset)]
        arguments = [pixels, out, *size, *factors, ctypes.c_longlong(total)]
        names = {torch.uint8: "patchify_bytes", torch.int16: "patchify_rounded"}
        name = names.get(pixels.dtype, "patchify")
        self.code.launch(name, (-(-total // 256), 1), 256, 0, arguments)

    def first_norm(
        self,
        *,
        patches: Tensor,
        start: Tensor,
        sources: Tensor,
        residual: Tensor,
        weight: Tensor,
        out: Tensor,
        eps: float,
    ) -> None:
        """patches (B, M, D), start (L, D) -> residual (B, L, D) float32, out its norm, split where
        the shape is. sources (L,) int32: which patch is added to a token's start, or -1."""
        rows, length = residual.numel() // self.shape.dim, start.shape[0]
        count = len(patches) * length // rows
        counts = [rows, length, count, ctypes.c_float(eps)]
        arguments = [patches, start, sources, residual, weight, out, *counts]
        name = "first_split_norm" if self.shape.split else "first_norm"
        self.code.launch(name, (-(-rows // 8), 1), 256, 0, arguments)

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
        arguments = [hidden, residual, weight, out, rows, ctypes.c_float(eps)]
        name = "add_permuted_norm" if permuted else "add_split_norm" if split else "add_norm"
        self.code.launch(name, (-(-rows // 8), 1), 256, 0, arguments)

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
        maps = [self.code.map(mixed, 128), self.code.map(w_out, 192)]
        arguments = [*maps, residual, weight, out, rows, ctypes.c_float(eps)]
        self.code.launch("out_norm", (clusters * ranks, 1), 256, self.shape.out_memory, arguments)

    def out_in(
        self,
        *,
        mixed: Tensor,
        w_out: Tensor,
        residual: Tensor,
        weight: Tensor,
        w_in: Tensor,
        xz: Tensor,
        eps: float,
        out_scale: float = 1.0,
        in_scale: float = 1.0,
    ) -> None:
        """residual (B L, D) float32 += mixed (B L, E) @ w_out^T; xz (B L, 2E) = its norm @ w_in^T.

        w_out (D, E): rows in the order of `permuted_rows` where there is `out_norm`. weight (D,):
        the RMS norm's. w_in (2E, D). In float32 mixed, w_out and w_in are split rows, and the
        scales undo those of the products' operands.
        """
        rows, blocks = len(mixed), self.program.out_in_blocks
        factors = [ctypes.c_float(value) for value in (out_scale, in_scale, eps)]
        arguments = [mixed, w_out, residual, weight, w_in, xz, rows, mixed.stride(0), *factors]
        grid, threads = (-(-rows // 16) * blocks, 1), 8 * self.shape.dim // blocks
        self.code.launch("out_in", grid, threads, 0, arguments)

    def split_mm(self, *, a: Tensor, b: Tensor, c: Tensor, scale: float, add: bool = False) -> None:
        """c (rows, columns) float32 = scale · a @ b^T of split matrices; add: c += that."""
        split_mm(self.code, self.limits, a=a, b=b, c=c, scale=scale, add=add)

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
        if self.xproj_blocks is not None:
            variant = (1, 1, 4, self.xproj_blocks)
        tiles, halves, splits, blocks = variant
        grid = (-(-rows // (16 * tiles * halves)) * blocks, 1)
        name = f"xproj_{tiles}{halves}{splits}" + (f"_{blocks}" if blocks > 1 else "")
        x = self.code.map(xz, 16 * tiles * halves + 6) if program.bulk_xproj else xz
        arguments = [x, x_proj, dt_proj, bc, steps, length, rows, only]
        if not program.bulk_xproj:
            arguments += [ctypes.c_float(x_scale), ctypes.c_float(dt_scale)]
        memory = program.xproj_memory(*variant)
        self.code.launch(name, grid, 64 * halves * splits, memory, arguments)

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
        self.code.launch(f"scan_{channels}", grid, 64, memory, arguments)

    def segment_scan(
        self,
        *,
        channels: int,
        segments: int,
        xz: Tensor,
        bc: Tensor,
        steps: Tensor,
        decay: Tensor,
        taps: Tensor,
        vectors: Tensor,
        length: int,
        mixed: Tensor | None = None,
    ) -> None:
        """As `scan`, each walk in so many segments at once.

        channels: of a block, one of SEGMENT_SCANS. segments: of 64 steps at most. mixed: not where
        x is.
        """
        steps_each = whole(-(-length // segments), 8)
        segments = -(-length // steps_each)
        assert steps_each <= 64  # a thread finishes two tokens at most
        arguments: list[Any] = [xz, bc, steps, decay, taps, vectors, length, steps_each]
        if mixed is not None:
            arguments[3:3] = [mixed]
            arguments.append(mixed.stride(0))
        memory = self.program.segment_memory(channels, steps_each, segments)
        grid = (self.shape.inner // channels, len(xz) // length)
        self.code.launch(f"segment_scan_{channels}", grid, 64 * segments, memory, arguments)

    def conv_silu(
        self, *, xz: Tensor, taps: Tensor, vectors: Tensor, u: Tensor, length: int
    ) -> None:
        """float32: x in xz (B L, 2E) -> u (2, B L, E)."""
        rows = len(xz)
        grid = (-(-rows * (self.shape.inner // 4) // 256), 1)
        self.code.launch("conv_silu", grid, 256, 0, [xz, taps, vectors, u, length, rows])

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
        self.code.launch("scan", grid, 64, 0, arguments)
