"""The operations of a Vim block for training on a CPU: forward as the service computes them there,
gradients by backward.cpp, compiled and kept as the service's kernels are.

What the elementwise parts of a Vim block need is computed anew in the backward pass, in cache; as
operations of torch under autograd they would take longer than the matrix products.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.scan import TrainingOps
from vim_embed.kernels.cpu import compile as native
from vim_embed.kernels.cpu.compile import NativeUnavailable
from vim_embed.kernels.cpu.ops import CpuOps, struct_fields
from vim_embed.kernels.ops import Direction, MixerOps

SOURCE = Path(__file__).with_name("backward.cpp")
STATES = 16  # a vector of them: the one number that backward.cpp knows
PARTS = 32  # in which sums over images are taken


class _Direction(ctypes.Structure):
    _fields_ = struct_fields(
        "u delta delta_bias A B C D",
        "u_batch u_token delta_batch delta_token b_batch b_token c_batch c_token",
    ) + struct_fields("du ddelta dB dC dA ddelta_bias dD")


class _Scan(ctypes.Structure):
    _fields_ = [
        ("forward", _Direction),
        ("backward", _Direction),
        *struct_fields("z dout", "z_batch z_token"),
        *struct_fields("dz", "batch length channels parts threads"),
    ]


class _Conv(ctypes.Structure):
    _fields_ = [
        *struct_fields("x weight bias dout", "x_batch x_token"),
        *struct_fields("dx dweight dbias", "batch length channels taps reverse parts threads"),
    ]


class _Norm(ctypes.Structure):
    _fields_ = [
        *struct_fields("stream weight dnormed dstream dinput dweight", "rows channels"),
        ("eps", ctypes.c_float),
        *struct_fields("", "parts threads"),
    ]


def training_ops(device: torch.device) -> MixerOps:
    """Those of backward.cpp on a CPU, those of torch elsewhere; and why not the former."""
    if device.type != "cpu":
        return TrainingOps()
    try:
        return NativeTrainingOps()
    except NativeUnavailable as error:
        print(f"Training by operations of torch, many times slower: {error}", flush=True)
        return TrainingOps()


class NativeTrainingOps:
    """`MixerOps` that can be differentiated, float32 on a CPU. Raises NativeUnavailable."""

    name = "training on a CPU"

    def __init__(self) -> None:
        self._forward, self._library = CpuOps(), _library()
        self._torch = TrainingOps()

    def add_norm(
        self, hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = _apply(
            _NormFunction, self, hidden.float(), residual, weight, eps
        )
        return found

    def conv_silu(self, x: Tensor, weight: Tensor, bias: Tensor, *, reverse: bool) -> Tensor:
        found: Tensor = _apply(_ConvFunction, self, x.float(), weight, bias, reverse)
        return found

    def scan(self, forward: Direction, backward: Direction, z: Tensor | None) -> Tensor:
        """By torch's operations where there is no gate, or another number of states than 16."""
        if z is None or forward.A_log.shape[1] != STATES:
            return self._torch.scan(forward, backward, z)
        tensors = *_tensors(forward), *_tensors(backward)
        found: Tensor = _apply(_ScanFunction, self, z.float(), *tensors)
        return found

    def call(self, name: str, arguments: ctypes.Structure) -> None:
        getattr(self._library, name)(ctypes.byref(arguments))

    @property
    def forward(self) -> CpuOps:
        """The service's own."""
        return self._forward


@cache
def _library() -> ctypes.CDLL:
    library = native.load(SOURCE).library
    native.join_torch_threads(library)
    return library


def _apply(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    return function.apply(*arguments)  # type: ignore[no-untyped-call]


def _tensors(d: Direction) -> tuple[Tensor, ...]:
    own = d.u, d.step, d.step_weight, d.delta_bias, d.A_log, d.B, d.C, d.D
    return tuple(each.float() for each in own)


class _ScanFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ops: NativeTrainingOps, z: Tensor, *tensors: Tensor) -> Tensor:
        ctx.ops = ops
        ctx.save_for_backward(z, *tensors)
        return ops.forward.scan(Direction(*tensors[:8]), Direction(*tensors[8:]), z)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        z, *tensors = (_rows(each) for each in ctx.saved_tensors)
        dout = grads[0].contiguous()
        dz = torch.empty_like(dout)
        directions = Direction(*tensors[:8]), Direction(*tensors[8:])
        both = [_read(each) for each in directions]
        made = [_gradients(*each) for each in both]
        arguments = _Scan(
            *(_pointers(*each, made=of) for each, of in zip(both, made, strict=True)),
            *(z.data_ptr(), dout.data_ptr(), *z.stride()[:2]),
            *(dz.data_ptr(), *dout.shape, PARTS, torch.get_num_threads()),
        )
        ctx.ops.call("vim_scan_backward", arguments)
        pairs = zip(directions, made, strict=True)
        return None, dz, *(each for direction, of in pairs for each in _summed(direction, *of))


class _ConvFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, ops: NativeTrainingOps, x: Tensor, weight: Tensor, bias: Tensor, reverse: bool
    ) -> Tensor:
        ctx.ops, ctx.reverse = ops, reverse
        ctx.save_for_backward(x, weight, bias)
        return ops.forward.conv_silu(x, weight, bias, reverse=reverse)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = (_rows(each) for each in ctx.saved_tensors)
        dout, taps = grads[0].contiguous(), weight.t().contiguous()
        dx = torch.empty_like(dout)
        dtaps, dbias = torch.zeros(PARTS, *taps.shape), torch.zeros(PARTS, *bias.shape)
        arguments = _Conv(
            *(each.data_ptr() for each in (x, taps, bias, dout)),
            *x.stride()[:2],
            *(each.data_ptr() for each in (dx, dtaps, dbias)),
            *(*dout.shape, len(taps), int(ctx.reverse), PARTS, torch.get_num_threads()),
        )
        ctx.ops.call("vim_conv_silu_backward", arguments)
        return None, dx, dtaps.sum(0).t(), dbias.sum(0), None


class _NormFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        ops: NativeTrainingOps,
        hidden: Tensor,
        residual: Tensor | None,
        weight: Tensor,
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        normed, stream = ops.forward.add_norm(hidden, residual, weight, eps)
        ctx.ops, ctx.eps, ctx.alone = ops, eps, residual is None
        ctx.save_for_backward(stream, weight)
        ctx.set_materialize_grads(False)
        return normed, stream

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        stream, weight = ctx.saved_tensors
        dnormed, dstream = (None if each is None else each.contiguous() for each in grads)
        if dnormed is None:
            return None, dstream, None if ctx.alone else dstream, None, None
        dinput, dweight = torch.empty_like(stream), torch.zeros(PARTS, *weight.shape)
        arguments = _Norm(
            *(stream.data_ptr(), weight.data_ptr(), dnormed.data_ptr()),
            None if dstream is None else dstream.data_ptr(),
            *(dinput.data_ptr(), dweight.data_ptr()),
            *(stream.numel() // len(weight), len(weight), ctx.eps, PARTS, torch.get_num_threads()),
        )
        ctx.ops.call("vim_add_norm_backward", arguments)
        return None, dinput, None if ctx.alone else dinput, dweight.sum(0), None


def _rows(tensor: Tensor) -> Tensor:
    """The tensor, with a contiguous last dimension."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _read(d: Direction) -> tuple[Tensor, ...]:
    """What backward.cpp reads."""
    return d.u, d.delta, d.delta_bias, d.A, d.B, d.C, d.D


def _gradients(
    u: Tensor, delta: Tensor, bias: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor
) -> tuple[Tensor, ...]:
    """To be filled, in the order of `_read`; those of parameters in parts, zero."""
    dbias, da, dd = (torch.zeros(PARTS, *each.shape) for each in (bias, a, d))
    du, ddelta, db, dc = (torch.empty(each.shape) for each in (u, delta, b, c))
    return du, ddelta, dbias, da, db, dc, dd


def _summed(
    read: Direction,
    du: Tensor,
    ddelta: Tensor,
    dbias: Tensor,
    da: Tensor,
    db: Tensor,
    dc: Tensor,
    dd: Tensor,
) -> tuple[Tensor, ...]:
    """In the order of a `Direction`'s fields."""
    dstep = ddelta @ read.step_weight
    dweight = ddelta.flatten(0, 1).t() @ read.step.flatten(0, 1)
    return du, dstep, dweight, dbias.sum(0), da.sum(0) * read.A, db, dc, dd.sum(0)


def _pointers(*tensors: Tensor, made: tuple[Tensor, ...]) -> _Direction:
    u, delta, _, _, b, c, _ = tensors
    du, ddelta, dbias, da, db, dc, dd = made
    return _Direction(
        *(each.data_ptr() for each in tensors),
        *(stride for each in (u, delta, b, c) for stride in each.stride()[:2]),
        *(each.data_ptr() for each in (du, ddelta, db, dc, da, dbias, dd)),
    )
