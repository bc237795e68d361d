"""The fastest Vim forward: five launches a block, nothing transposed, nothing flipped.

A block is: in_proj (cuBLAS), conv + SiLU + x_proj of both directions, scan of both directions with
step sizes, skip, gate and average, out_proj (cuBLAS), residual add + norm. float32 takes the same
route in more launches. The residual stream and the scan state are float32 in every dtype.

No host synchronisation and no state across calls but the position tables, so a forward can be
captured in a CUDA graph. Shapes: B images, M patches, L = M + 1 tokens, D width, E = 2D.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from vim_embed.kernels.fused.build import CompileError, compiler_version
from vim_embed.kernels.fused.launch import DTYPES, Kernels, Shape
from vim_embed.kernels.fused.pack import pack_layer
from vim_embed.models.vim import Block, Vim, VimConfig

OnBlock = Callable[[int, Tensor], None]

_MIN_CAPABILITY = (9, 0)
_FLOAT_TOKENS = 16384  # float32 keeps u and the step sizes in memory: bound them
_FULL_WARPS = 6000  # scan warps above which half the batch fills the device as well


def supports(config: VimConfig, dtype: torch.dtype, device: torch.device | str) -> tuple[bool, str]:
    """Whether `FusedVim` can run such a model here, and why (not)."""
    reason = _unsupported_shape(config) or _unsupported_device(dtype, torch.device(device))
    return (False, reason) if reason else (True, "CUDA kernels for the whole block")


def _unsupported_shape(config: VimConfig) -> str:
    wanted = {
        f"d_state is {config.d_state}, not 16": config.d_state == 16,
        f"d_conv is {config.d_conv}, not 4": config.d_conv == 4,
        f"the inner width {config.inner} is no multiple of 64": config.inner % 64 == 0,
        f"the width {config.dim} is no multiple of 32": config.dim % 32 == 0,
        f"the width {config.dim} is above 2048": config.dim <= 2048,
        f"the step-size rank {config.rank} is above 64": config.rank <= 64,
        f"the patch size {config.patch_size} is no multiple of 8": config.patch_size % 8 == 0,
    }
    return next((reason for reason, met in wanted.items() if not met), "")


def _unsupported_device(dtype: torch.dtype, device: torch.device) -> str:
    if dtype not in DTYPES:
        return f"no kernels for {dtype}"
    if device.type != "cuda":
        return f"the fused kernels need a CUDA device, not {device.type}"
    if not torch.cuda.is_available():
        return "no CUDA device is available"
    capability = torch.cuda.get_device_capability(device)
    if capability < _MIN_CAPABILITY:
        return f"compute capability {capability[0]}.{capability[1]} is below 9.0"
    try:
        compiler_version()
    except CompileError as error:
        return str(error)
    return ""


@dataclass(frozen=True)
class _Buffers:
    """Working memory of one forward; `hidden` is normed input and block output in turn."""

    residual: Tensor  # (B L, D) float32
    hidden: Tensor  # (B L, D)
    xz: Tensor  # (B L, 2E)
    projected: Tensor  # (B L, 2, ROW), float32 (2, B L, ROW)
    mixed: Tensor  # (B L, E)
    u: Tensor | None = None  # float32: (2, B L, E)
    delta: Tensor | None = None  # float32: (2, B L, E)


def _frame(model: Vim, device: torch.device) -> Vim:
    """What surrounds the blocks, in float32 on `device`: a Vim of no layers."""
    frame = Vim(replace(model.config, depth=0))
    weights = {name: model.state_dict()[name].float() for name in frame.state_dict()}
    frame.load_state_dict(weights)
    return frame.requires_grad_(False).to(device)


class FusedVim:
    """A `Vim`'s weights, packed, and its forward. Not for several threads at once."""

    def __init__(self, model: Vim, dtype: torch.dtype, device: torch.device | str) -> None:
        """Copies the weights (best from float32); `model` is not needed afterwards.

        Raises ValueError where `supports` says no.
        """
        self.device = torch.device(device)
        self.dtype = dtype
        self.config = config = model.config
        works, reason = supports(config, dtype, self.device)
        if not works:
            raise ValueError(reason)
        self.shape = Shape(config.dim, config.inner, config.rank, dtype)
        self.kernels = Kernels(self.shape, self.device)
        self.scan_tiles: int | None = None  # None: chosen by shape
        self._multiprocessors = torch.cuda.get_device_properties(self.device).multi_processor_count
        with torch.no_grad():
            self._frame = _frame(model, self.device)
            layers = [pack_layer(cast(Block, x), self.shape, self.device) for x in model.layers]
            patch = self._frame.patch_embed.proj.weight
            self._patch_weight = patch.flatten(1).t().to(dtype).contiguous()
        self._layers = layers
        self._starts: dict[tuple[int, int], Tensor] = {}

    def token_count(self, height: int, width: int) -> int:
        """Final tokens of an image of that many pixels."""
        return self._frame.token_count(height, width)

    def cls_index(self, tokens: int) -> int:
        """Index of the class token among `tokens` final tokens."""
        return self._frame.cls_index(tokens)

    @torch.no_grad()
    def __call__(self, pixel_values: Tensor, *, on_block: OnBlock | None = None) -> Tensor:
        """Normalised images (B, 3, H, W) to the final tokens (B, L, D) in the compute dtype.

        on_block(i, stream) sees the residual stream (B, L, D) float32 after each block; the
        tensor is valid only during the call.
        """
        pixels = pixel_values.to(self.device, torch.float32).contiguous()
        batch, _, height, width = pixels.shape
        length = self.token_count(height, width)
        rows = batch if on_block else self._rows_at_once(batch, length)
        with torch.cuda.device(self.device):
            buffers = self._buffers(rows * length)
            if rows == batch:
                return self._forward(pixels, buffers, length, on_block)
            out = pixels.new_empty(batch, length, self.config.dim, dtype=self.dtype)
            for start in range(0, batch, rows):
                part = pixels[start : start + rows]
                out[start : start + rows] = self._forward(part, buffers, length, None)
        return out

    def _rows_at_once(self, batch: int, length: int) -> int:
        """Images a pass: fewer where that saves memory and leaves the device full."""
        if self.dtype == torch.float32:
            return max(1, min(batch, _FLOAT_TOKENS // length))
        rows = batch
        while rows % 2 == 0 and rows // 2 * self.config.inner // 32 >= _FULL_WARPS:
            rows //= 2
        return rows

    def _buffers(self, tokens: int) -> _Buffers:
        shape, inner = self.shape, self.config.inner

        def empty(*size: int, dtype: torch.dtype = self.dtype) -> Tensor:
            return torch.empty(size, dtype=dtype, device=self.device)

        half = self.dtype != torch.float32
        return _Buffers(
            residual=empty(tokens, shape.dim, dtype=torch.float32),
            hidden=empty(tokens, shape.dim),
            xz=empty(tokens, 2 * inner),
            projected=empty(tokens, 2, shape.row) if half else empty(2, tokens, shape.row),
            mixed=empty(tokens, inner),
            u=None if half else empty(2, tokens, inner),
            delta=None if half else empty(2, tokens, inner),
        )

    def _forward(
        self, pixels: Tensor, buffers: _Buffers, length: int, on_block: OnBlock | None
    ) -> Tensor:
        """The final tokens (B, L, D), in `buffers.hidden`."""
        batch, dim, eps = len(pixels), self.config.dim, self.config.eps
        tokens = batch * length
        residual, hidden = buffers.residual[:tokens], buffers.hidden[:tokens]
        xz, mixed = buffers.xz[:tokens], buffers.mixed[:tokens]
        self._embed(pixels, buffers, length)
        for index, layer in enumerate(self._layers):
            torch.mm(hidden, layer.w_in, out=xz)
            if self.dtype == torch.float32:
                self._mix_float(index, buffers, length, tokens)
            else:
                self._mix(index, buffers, length, tokens)
            torch.mm(mixed, layer.w_out, out=hidden)
            last = index + 1 == len(self._layers)
            weight = self._frame.norm_f.weight if last else self._layers[index + 1].norm
            keep = not last or on_block is not None
            self.kernels.add_norm(hidden, residual, weight, hidden, eps, keep)
            if on_block is not None:
                on_block(index, residual.view(batch, length, dim))
        return hidden.view(batch, length, dim)

    def _embed(self, pixels: Tensor, buffers: _Buffers, length: int) -> None:
        """Patches, class token and position: the first residual stream and its norm."""
        config, tokens = self.config, len(pixels) * length
        rows, columns = config.grid(*pixels.shape[-2:])
        patch = config.patch_size
        # the buffers of the blocks, not yet in use, where they are large enough
        flat = _view(buffers.xz, len(pixels) * rows * columns, 3 * patch * patch)
        patches = _view(buffers.mixed, len(pixels) * rows * columns, config.dim)
        self.kernels.patchify(pixels, flat, (rows, columns), patch, config.stride)
        torch.mm(flat, self._patch_weight, out=patches)
        weight = self._layers[0].norm if self._layers else self._frame.norm_f.weight
        start, residual = self._start(rows, columns), buffers.residual[:tokens]
        hidden = buffers.hidden[:tokens]
        self.kernels.first_norm(patches, start, residual, weight, hidden, config.eps)

    def _start(self, rows: int, columns: int) -> Tensor:
        """(L, D) float32: position embedding plus patch bias, or plus the class token."""
        known = self._starts.get((rows, columns))
        if known is not None:
            return known
        model = self._frame
        assert model.patch_embed.proj.bias is not None
        start = model.position_embedding(rows, columns)[0].float()
        middle = self.cls_index(len(start))
        cls = start[middle] + model.cls_token[0, 0].float()
        start = start + model.patch_embed.proj.bias.float()
        start[middle] = cls
        if not torch.cuda.is_current_stream_capturing():
            self._starts[rows, columns] = start
        return start

    def _mix(self, index: int, buffers: _Buffers, length: int, tokens: int) -> None:
        """xz -> mixed in float16 or bfloat16."""
        layer = self._layers[index]
        xz, mixed = buffers.xz[:tokens], buffers.mixed[:tokens]
        projected = buffers.projected[:tokens]
        vectors = layer.vectors
        self.kernels.xproj(xz, layer.x_proj, projected, length)
        tensors = [xz, projected, layer.decay, layer.taps, vectors, layer.dt_proj, mixed]
        tiles = self.scan_tiles or self._choose_scan(tokens // length)
        self.kernels.scan(tiles, tensors, length)

    def _choose_scan(self, batch: int) -> int:
        """Channels a warp / 16: many where there are many warps a scheduler."""
        per_scheduler = batch * self.config.inner / 32 / (4 * self._multiprocessors)
        if per_scheduler >= 2.5:
            return 4
        return 2 if per_scheduler >= 1 else 1

    def _mix_float(self, index: int, buffers: _Buffers, length: int, tokens: int) -> None:
        """xz -> mixed in float32: u and the step sizes go through memory, cuBLAS projects."""
        layer, rank, row = self._layers[index], self.shape.padded_rank, self.shape.row
        inner = self.config.inner
        xz, mixed = buffers.xz[:tokens], buffers.mixed[:tokens]
        assert buffers.u is not None
        assert buffers.delta is not None
        u = buffers.u.view(-1)[: 2 * tokens * inner].view(2, tokens, inner)
        delta = buffers.delta.view(-1)[: 2 * tokens * inner].view(2, tokens, inner)
        projected = buffers.projected.view(-1)[: 2 * tokens * row].view(2, tokens, row)
        self.kernels.conv_silu(xz, layer.taps, layer.vectors, u, length)
        for side in range(2):
            torch.mm(u[side], layer.x_proj[side], out=projected[side])
            steps, bias = projected[side, :, :rank], layer.vectors[side, :, 1]
            torch.addmm(bias, steps, layer.dt_proj[side], out=delta[side])
        tensors = [xz, u, delta, projected, layer.decay, layer.vectors, mixed]
        self.kernels.scan_float(tensors, length)


def _view(buffer: Tensor, rows: int, columns: int) -> Tensor:
    """(rows, columns) in the buffer's memory, or in new memory if it is too small."""
    if rows * columns > buffer.numel():
        return buffer.new_empty(rows, columns)
    return buffer.view(-1)[: rows * columns].view(rows, columns)
