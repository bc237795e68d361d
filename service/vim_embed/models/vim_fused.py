"""The fastest Vim forward: three to five launches a block, nothing transposed, nothing flipped.

A block is: in_proj (cuBLAS), conv + SiLU + x_proj + dt_proj of both directions, scan of both
directions with skip, gate and average, out_proj with the residual add (cuBLAS), norm. Of few
images, one kernel goes from out_proj to the next block's in_proj. float32 takes the same route with
split products on tensor cores (kernels/fused/split.cuh) in place of cuBLAS; with plain float32
products it takes more launches. The residual stream and the scan state are
float32 in every dtype.

No host synchronisation and no state across calls but the position tables, so a forward can be
captured in a CUDA graph. Shapes: B images, M patches, L = M + 1 tokens, D width, E = 2D.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from vim_embed.kernels.fused.device_code import Limits
from vim_embed.kernels.fused.launch import Kernels
from vim_embed.kernels.fused.program import Shape
from vim_embed.kernels.streams import own_stream
from vim_embed.models.vim import Block, Vim
from vim_embed.models.vim_fused_frame import ROUNDED_OFFSET, Frame, Images
from vim_embed.models.vim_fused_support import supports
from vim_embed.models.vim_packed import PackedLayer, pack_layer, permuted_rows
from vim_embed.types.preprocessing import NORMALISED, Rounding, Scaling

OnBlock = Callable[[int, Tensor], None]

_PLAIN_TOKENS = 16384  # plain float32 keeps u and the step sizes in memory: bound them
_SPLIT_TOKENS = 128 * 197  # split float32 has twice half precision's buffers
# Tokens for each 192 of the width from which on `out_norm` beats cuBLAS and a kernel for the norm.
_OUT_ROWS = 10000
# Tokens times inner width that fill a device, with two halves side by side.
_PASS = 256 * 197 * 384
# cuBLAS takes 32 MiB for each stream unless told otherwise; these products gain nothing by it.
_WORKSPACES = {"CUBLAS_WORKSPACE_CONFIG": ":16:8", "CUBLASLT_WORKSPACE_SIZE": "128"}  # 128 KiB


@dataclass(frozen=True)
class _Buffers:
    """Working memory of one forward, T tokens."""

    residual: Tensor  # (T, D) float32
    hidden: Tensor  # (T, D): the normed stream
    xz: Tensor  # (T, 2E)
    mixed: (
        Tensor  # (T, E), in half precision a half of `steps`; split: (T, 2E) float16, maybe in xz
    )
    bc: Tensor  # float32: B and C (T, 2, 32); plain: with the step sizes' ranks (2, T, ROW)
    steps: Tensor | None = None  # (T, 2, E): half: float16 bits, whatever the dtype; split: float32
    u: Tensor | None = None  # plain float32: (2, T, E)
    delta: Tensor | None = None  # plain float32: (2, T, E)

    @property
    def in_place(self) -> bool:
        """Whether `mixed` lies where x was."""
        return self.mixed.data_ptr() == self.xz.data_ptr()

    def part(self, start: int, stop: int) -> _Buffers:
        """Those of some of the tokens; only for half precision."""
        own = slice(start, stop)
        assert self.steps is not None
        hidden, steps = self.hidden[own], self.steps[own]
        bc = _bc(hidden, self.bc.view(-1, 64)[own])
        return _Buffers(self.residual[own], hidden, self.xz[own], steps[:, 0], bc, steps)


def _bc(hidden: Tensor, separate: Tensor) -> Tensor:
    """(T, 2, 32) float32: in the memory of `hidden`, which is free by then, if that is enough."""
    tokens = len(hidden)
    if hidden.shape[1] * hidden.element_size() < 256:
        return separate
    return hidden.view(torch.float32).view(-1)[: tokens * 64].view(tokens, 64)


class FusedVim:
    """A `Vim`'s weights, packed, and its forward. Not for several threads at once."""

    def __init__(
        self,
        model: Vim,
        dtype: torch.dtype,
        device: torch.device | str,
        *,
        ieee: bool = False,
        limits: Limits | None = None,
    ) -> None:
        """Copies the weights (best from float32); `model` is not needed afterwards.

        ieee: float32 with plain products, not split ones. limits: run as on another, older kind of
        device. Raises ValueError where `supports` says no.
        """
        for name, value in _WORKSPACES.items():
            os.environ.setdefault(name, value)
        self.device = torch.device(device)
        self.dtype = dtype
        self.config = config = model.config
        works, reason = supports(config, dtype, self.device)
        if not works:
            raise ValueError(reason)
        split = dtype == torch.float32 and not ieee
        self.shape = Shape(config.dim, config.inner, config.rank, dtype, split)
        self.kernels = Kernels(self.shape, self.device, limits)
        self.scan_channels: int | None = None  # None: chosen by shape
        self.scan_segments: tuple[int, int] | None = None  # channels and segments, likewise
        self.joined: bool | None = None  # whether out_proj and in_proj are one kernel, likewise
        with torch.no_grad():
            self._frame = Frame(model, dtype, self.device)
            self._permuted = self.kernels.fuses_out
            layers = [
                pack_layer(cast(Block, x), self.shape, self.device, permuted=self._permuted)
                for x in model.layers
            ]
            self._order = permuted_rows(config.dim).argsort().to(self.device)
        self._layers = layers
        self._sides: dict[int, torch.cuda.Stream] = {}
        self._side = own_stream(self.device)

    @property
    def rounding(self) -> Rounding | None:
        """What becomes of normalised float32 pixels first: in half precision they may come rounded,
        as int16 that holds the bits. None: they may not.
        """
        if not self.shape.half:
            return None
        return Rounding(str(self.dtype).removeprefix("torch."), ROUNDED_OFFSET)

    @property
    def products(self) -> str:
        """How matrices are multiplied, in words."""
        if self.shape.half:
            return "half-precision products"
        if self.shape.split:
            return "float32 products as three half-precision ones"
        return "plain float32 products"

    def give_up_clusters(self) -> bool:
        """Take only kernels whose blocks share no memory; False where it does so already."""
        limits = self.kernels.limits
        if limits.capability < (9, 0) or not limits.clusters:
            return False
        self.kernels.limits = replace(limits, clusters=False)
        return True

    def token_count(self, height: int, width: int) -> int:
        """Final tokens of an image of that many pixels."""
        return self._frame.token_count(height, width)

    def cls_index(self, tokens: int) -> int:
        """Index of the class token among `tokens` final tokens."""
        return self._frame.cls_index(tokens)

    @torch.no_grad()
    def __call__(
        self,
        pixel_values: Tensor,
        *,
        scaling: Scaling = NORMALISED,
        on_block: OnBlock | None = None,
    ) -> Tensor:
        """Images (B, 3, H, W) to the final tokens (B, L, D) in the compute dtype.

        scaling: what makes their pixels, uint8 or of a float dtype, normalised ones; those of
        pixels that are rounded already (`rounding`) are not used.
        on_block(i, stream) sees the residual stream (B, L, D) float32 after each block; the
        tensor is valid only during the call.
        """
        return self._run(self._images(pixel_values, scaling), on_block, only_cls=False)

    @torch.no_grad()
    def cls(self, pixel_values: Tensor, *, scaling: Scaling = NORMALISED) -> Tensor:
        """Images (B, 3, H, W) to their final class tokens (B, D); the last block skips what only
        the other tokens need."""
        return self._run(self._images(pixel_values, scaling), None, only_cls=True)[:, 0]

    def _images(self, pixel_values: Tensor, scaling: Scaling) -> Images:
        as_they_are = pixel_values.dtype in (torch.uint8, torch.int16)
        kept = pixel_values.dtype if as_they_are else torch.float32
        return Images(pixel_values.to(self.device, kept).contiguous(), scaling)

    def _run(self, images: Images, on_block: OnBlock | None, *, only_cls: bool) -> Tensor:
        batch, length = len(images), self.token_count(*images.size)
        rows = batch if on_block else self._rows_at_once(batch, length)
        with torch.cuda.device(self.device):
            channels = self.scan_channels or self._choose_scan(rows)
            in_place = self.shape.split and channels == 32
            buffers = self._buffers(rows * length, in_place=in_place)
            if rows == batch:
                return self._pass(images, buffers, on_block, only_cls=only_cls)
            shape = batch, 1 if only_cls else length, self.config.dim
            out = torch.empty(shape, dtype=self.dtype, device=self.device)
            for start in range(0, batch, rows):
                stop = min(start + rows, batch)
                out[start:stop] = self._pass(
                    images.part(start, stop), buffers, None, only_cls=only_cls
                )
        return out

    def _rows_at_once(self, batch: int, length: int) -> int:
        """Images a pass: fewer where that saves memory and leaves the device full."""
        if self.shape.split:
            parts = -(-batch * length // _SPLIT_TOKENS)
            return -(-batch // min(parts, batch))
        if not self.shape.half:
            return max(1, min(batch, _PLAIN_TOKENS // length))
        rows = batch
        while rows % 2 == 0 and rows // 2 * length * self.config.inner >= 2 * _PASS:
            rows //= 2
        return rows

    def _pass(
        self, images: Images, buffers: _Buffers, on_block: OnBlock | None, *, only_cls: bool
    ) -> Tensor:
        """The final tokens (B, L, D), or (B, 1, D). Large passes go as two halves side by side.

        One half's scan, which leaves memory and tensor cores idle, then runs beside the other's
        projections.
        """
        batch, length = len(images), self.token_count(*images.size)
        if on_block is not None or batch % 2 or not self._wide(batch // 2, length):
            return self._forward(images, buffers, on_block, only_cls=only_cls)
        half, tokens = batch // 2, batch // 2 * length
        first, second = buffers.part(0, tokens), buffers.part(tokens, 2 * tokens)
        here = torch.cuda.current_stream(self.device)
        side = self._beside(here)
        side.wait_stream(here)
        try:
            with torch.cuda.stream(side):
                self._forward(images.part(half, batch), second, None, only_cls=only_cls)
            self._forward(images.part(0, half), first, None, only_cls=only_cls)
        finally:  # if one fails, too: the buffers are free then, and a capture ends with one stream
            here.wait_stream(side)
        return self._tokens(buffers, batch, length, only_cls=only_cls)

    def _beside(self, stream: torch.cuda.Stream) -> torch.cuda.Stream:
        """Where the second half goes: graphs of two streams have two, and so may run at once."""
        key = stream.cuda_stream
        if key not in self._sides:
            # A stream that is captured without a warm-up on it takes the first one's: none can be
            # made meanwhile, and cuBLAS wants to have seen a stream before.
            if torch.cuda.is_current_stream_capturing():
                return self._side
            self._sides[key] = own_stream(self.device) if self._sides else self._side
        return self._sides[key]

    def _wide(self, batch: int, length: int) -> bool:
        """Whether so many images keep the device busy, so that twice as many go side by side."""
        if not self.shape.half:
            return False
        if self._permuted:
            many = batch * length >= _OUT_ROWS * self.shape.ranks
            return many and (self.scan_channels or self._choose_scan(batch)) == 32
        return 2 * batch * length * self.config.inner >= _PASS

    def _tokens(self, buffers: _Buffers, batch: int, length: int, *, only_cls: bool) -> Tensor:
        tokens = buffers.hidden[: batch * length].view(batch, length, self.config.dim)
        if not only_cls:
            return tokens
        cls = self.cls_index(length)
        return tokens[:, cls : cls + 1]

    def _buffers(self, tokens: int, *, in_place: bool = False) -> _Buffers:
        """in_place: split: `mixed` lies where x was, which takes a scan of 32 channels a warp."""
        shape, inner = self.shape, self.config.inner

        def empty(*size: int, dtype: torch.dtype = self.dtype) -> Tensor:
            return torch.empty(size, dtype=dtype, device=self.device)

        residual, hidden = empty(tokens, shape.dim, dtype=torch.float32), empty(tokens, shape.dim)
        xz = empty(tokens, 2 * inner)
        if not (shape.half or shape.split):
            mixed, bc = empty(tokens, inner), empty(2 * tokens * shape.row)
            u, delta = empty(2 * tokens * inner), empty(2 * tokens * inner)
            return _Buffers(residual, hidden, xz, mixed, bc, u=u, delta=delta)
        steps = empty(tokens, 2, inner)
        fits = shape.dim * hidden.element_size() >= 256
        bc = _bc(hidden, hidden) if fits else empty(tokens, 64, dtype=torch.float32)
        if shape.split:
            own = xz if in_place else empty(tokens, inner)
            mixed = own.view(torch.float16)[:, : 2 * inner]
            return _Buffers(residual, hidden, xz, mixed, bc, steps)
        return _Buffers(residual, hidden, xz, steps[:, 0], bc, steps)

    def _forward(
        self, images: Images, buffers: _Buffers, on_block: OnBlock | None, *, only_cls: bool
    ) -> Tensor:
        """The final tokens (B, L, D), or (B, 1, D), in `buffers.hidden`."""
        batch, length = len(images), self.token_count(*images.size)
        tokens, last = batch * length, len(self._layers) - 1
        residual, hidden = buffers.residual[:tokens], buffers.hidden[:tokens]
        self._embed(images, buffers, length)
        joins = self._joins(buffers, tokens)
        for index, layer in enumerate(self._layers):
            only = self.cls_index(length) if only_cls and index == last else -1
            if index == 0 or not joins:
                self._project(hidden, layer, buffers.xz[:tokens], length, only)
            if self.shape.half or self.shape.split:
                self._mix(index, buffers, length, tokens, only)
            else:
                self._mix_plain(index, buffers, length, tokens)
            if only >= 0:
                self._last_token(buffers, layer, length, only)
            else:
                following = None if index == last else self._layers[index + 1]
                if joins and following is not None:
                    self._add_and_project(buffers, layer, following, tokens)
                else:
                    self._add(buffers.mixed[:tokens], layer, residual, following, hidden)
            if on_block is not None:
                on_block(index, residual.view(batch, length, self.config.dim))
        return self._tokens(buffers, batch, length, only_cls=only_cls)

    def _project(
        self, hidden: Tensor, layer: PackedLayer, xz: Tensor, length: int, only: int
    ) -> None:
        """xz = hidden @ w_in; its gates only of the token `only`, if that is not -1."""
        w_in, inner = layer.w_in, self.config.inner
        if self.shape.split:
            a = hidden.view(torch.float16)
            self.kernels.split_mm(a=a, b=w_in, c=xz, scale=layer.in_scale)
            return
        if only < 0:
            torch.mm(hidden, w_in, out=xz)
            return
        torch.mm(hidden, w_in[:, :inner], out=xz[:, :inner])
        torch.mm(hidden[only::length], w_in[:, inner:], out=xz[only::length, inner:])

    def _add(
        self,
        mixed: Tensor,
        layer: PackedLayer,
        residual: Tensor,
        following: PackedLayer | None,
        hidden: Tensor,
    ) -> None:
        """residual += mixed @ w_out; hidden = its norm for the following block, or the last norm.

        By whichever of the ways moves less.
        """
        eps, w_out = self.config.eps, layer.w_out
        weight = self._frame.norm_f if following is None else following.norm
        if self._permuted and len(mixed) >= _OUT_ROWS * self.shape.ranks:
            self.kernels.out_norm(
                mixed=mixed,
                w_out=w_out.t(),
                residual=residual,
                weight=weight,
                out=hidden,
                eps=eps,
            )
            return
        added: Tensor | None = None
        if self.shape.split:
            self.kernels.split_mm(a=mixed, b=w_out, c=residual, scale=layer.out_scale, add=True)
        elif self.shape.half:
            added = torch.mm(mixed, w_out, out=hidden)
        else:
            torch.addmm(residual, mixed, w_out, out=residual)
        self.kernels.add_norm(
            hidden=added,
            residual=residual,
            weight=weight,
            out=hidden,
            eps=eps,
            permuted=self._permuted,
            split=self.shape.split and following is not None,
        )

    def _joins(self, buffers: _Buffers, tokens: int) -> bool:
        """Whether a block's out_proj and the next one's in_proj are one kernel."""
        if self.joined is not None or not (self.shape.half or self.shape.split):
            return bool(self.joined)
        few = self.kernels.program.has_out_in(tokens, self.kernels.limits)
        return few and not buffers.in_place

    def _add_and_project(
        self, buffers: _Buffers, layer: PackedLayer, following: PackedLayer, tokens: int
    ) -> None:
        """`_add` and the following block's `_project` in one kernel."""
        weights = layer.w_out, following.w_in
        w_out, w_in = weights if self.shape.split else (weight.t() for weight in weights)
        self.kernels.out_in(
            mixed=buffers.mixed[:tokens],
            w_out=w_out,
            residual=buffers.residual[:tokens],
            weight=following.norm,
            w_in=w_in,
            xz=buffers.xz[:tokens],
            eps=self.config.eps,
            out_scale=layer.out_scale,
            in_scale=following.in_scale,
        )

    def _last_token(self, buffers: _Buffers, layer: PackedLayer, length: int, only: int) -> None:
        """The last block's end for one token an image."""
        images = len(buffers.hidden) // length
        stream = buffers.residual[: images * length].view(images, length, -1)[:, only]
        mixed = buffers.mixed[only::length][:images]
        if self.shape.split:
            stream = stream.clone()
            w_out, scale = layer.w_out, layer.out_scale
            self.kernels.split_mm(a=mixed, b=w_out, c=stream, scale=scale, add=True)
        else:
            added = torch.mm(mixed, layer.w_out)
            stream = stream + (added[:, self._order] if self._permuted else added)
        weight = self._frame.norm_f
        normed = F.rms_norm(stream, stream.shape[-1:], weight, self.config.eps)
        buffers.hidden[only::length][:images].copy_(normed)

    def _embed(self, images: Images, buffers: _Buffers, length: int) -> None:
        """Patches, special tokens and positions: the first residual stream and its norm."""
        tokens = len(images) * length
        # the buffers of the blocks, not yet in use
        spare = buffers.mixed if buffers.steps is None else buffers.steps
        patches = self._frame.patches(images, self.kernels, pixels=buffers.xz, out=spare)
        start, sources = self._frame.start(*images.size)
        self.kernels.first_norm(
            patches=patches,
            start=start,
            sources=sources,
            residual=buffers.residual[:tokens],
            weight=self._layers[0].norm if self._layers else self._frame.norm_f,
            out=buffers.hidden[:tokens],
            eps=self.config.eps,
        )

    def _mix(self, index: int, buffers: _Buffers, length: int, tokens: int, only: int) -> None:
        """xz -> mixed in half precision or split float32."""
        layer, xz = self._layers[index], buffers.xz[:tokens]
        bc, steps = buffers.bc, buffers.steps
        assert steps is not None
        self.kernels.xproj(
            xz=xz,
            x_proj=layer.x_proj,
            dt_proj=layer.dt_proj,
            bc=bc,
            steps=steps,
            length=length,
            only=only,
            x_scale=layer.x_scale,
            dt_scale=layer.dt_scale,
        )
        mixed = buffers.mixed[:tokens] if self.shape.split else None
        operands: dict[str, Any] = {
            "xz": xz,
            "bc": bc,
            "steps": steps,
            "decay": layer.decay,
            "taps": layer.taps,
            "vectors": layer.vectors,
            "length": length,
        }
        segments = None if buffers.in_place else self._choose_segments(tokens // length, length)
        if segments is not None:
            channels, count = segments
            self.kernels.segment_scan(channels=channels, segments=count, mixed=mixed, **operands)
            return
        # a last, smaller pass has the buffers of the others
        chosen = self.scan_channels or self._choose_scan(tokens // length)
        channels = 32 if buffers.in_place else chosen
        self.kernels.scan(channels=channels, only=only, mixed=mixed, **operands)

    def _choose_segments(self, batch: int, length: int) -> tuple[int, int] | None:
        """Channels of a block and segments, where the scan goes in segments."""
        if self.scan_segments is not None or self.scan_channels is not None:
            return self.scan_segments
        kernels = self.kernels
        return kernels.program.segment_variant(batch, length, kernels.limits)

    def _choose_scan(self, batch: int) -> int:
        """Channels a warp: many where there are many warps a scheduler."""
        per_scheduler = batch * self.config.inner / 32 / (4 * self.kernels.limits.multiprocessors)
        wanted = [(1.1, 32), (0.15, 16)]
        return next((channels for least, channels in wanted if per_scheduler >= least), 8)

    def _mix_plain(self, index: int, buffers: _Buffers, length: int, tokens: int) -> None:
        """xz -> mixed in plain float32: u and the step sizes go through memory, cuBLAS projects."""
        layer, rank, row = self._layers[index], self.shape.padded_rank, self.shape.row
        inner = self.config.inner
        xz, mixed = buffers.xz[:tokens], buffers.mixed[:tokens]
        assert buffers.u is not None
        assert buffers.delta is not None
        u = buffers.u[: 2 * tokens * inner].view(2, tokens, inner)
        delta = buffers.delta[: 2 * tokens * inner].view(2, tokens, inner)
        projected = buffers.bc[: 2 * tokens * row].view(2, tokens, row)
        self.kernels.conv_silu(xz=xz, taps=layer.taps, vectors=layer.vectors, u=u, length=length)
        for side in range(2):
            torch.mm(u[side], layer.x_proj[side], out=projected[side])
            steps, bias = projected[side, :, :rank], layer.dt_bias[side]
            torch.addmm(bias, steps, layer.dt_proj[side], out=delta[side])
        self.kernels.scan_float(
            xz=xz,
            u=u,
            delta=delta,
            projected=projected,
            decay=layer.decay,
            vectors=layer.vectors,
            out=mixed,
            length=length,
        )
