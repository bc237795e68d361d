"""`MixerOps` in vectorised C++ (cpu.cpp), called through ctypes, which releases the GIL.

Computes in float32; other dtypes are converted on the way in and out. Threads: those of torch
(torch.get_num_threads()), in torch's own OpenMP pool. Inference only: no autograd.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vim_embed.kernels.cpu import compile as native
from vim_embed.kernels.cpu import host_copy
from vim_embed.kernels.cpu.compile import NativeUnavailable
from vim_embed.kernels.ops import Direction
from vim_embed.kernels.reference import ReferenceOps

SOURCE = Path(__file__).with_name("cpu.cpp")
SELF_TEST_TOLERANCE = 1e-5
_OPEN_GATE = 1.278464542761074  # silu(x) = 1

_POINTER, _INT = ctypes.c_void_p, ctypes.c_int64


def struct_fields(pointers: str, integers: str = "") -> list[tuple[str, type[Any]]]:
    """Fields of a ctypes structure: pointers by their names, then 64-bit integers."""
    named: list[tuple[str, type[Any]]] = [(name, _POINTER) for name in pointers.split()]
    return named + [(name, _INT) for name in integers.split()]


DIRECTION_FIELDS = struct_fields(
    "u step step_weight delta_bias A_log B C D",
    "u_batch u_token step_batch step_token b_batch b_token c_batch c_token",
)


class _Direction(ctypes.Structure):
    _fields_ = DIRECTION_FIELDS


class _Scan(ctypes.Structure):
    _fields_ = [
        ("forward", _Direction),
        ("backward", _Direction),
        *struct_fields("z", "z_batch z_token"),
        *struct_fields("out", "batch length channels states rank threads"),
    ]


class _Conv(ctypes.Structure):
    _fields_ = [
        *struct_fields("x weight bias", "x_batch x_token"),
        *struct_fields("out", "batch length channels taps reverse threads"),
    ]


class _Norm(ctypes.Structure):
    _fields_ = [
        *struct_fields("hidden residual weight normed stream", "rows channels"),
        ("eps", ctypes.c_float),
        ("threads", _INT),
    ]


class CpuOps:
    """The kernels of cpu.cpp. Raises NativeUnavailable where they cannot be built or fail."""

    name = "cpu"

    def __init__(self) -> None:
        self._loaded = _library()
        self._library = self._loaded.library

    @property
    def origin(self) -> str:
        """Where the library came from: "prebuilt", "cached" or "compiled"."""
        return self._loaded.origin

    def add_norm(
        self, hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        source = hidden.float().contiguous()
        previous = None if residual is None else residual.float().contiguous()
        scale = weight.float().contiguous()
        stream, normed = torch.empty_like(source), torch.empty_like(source)
        channels = source.shape[-1]
        arguments = _Norm(
            source.data_ptr(),
            None if previous is None else previous.data_ptr(),
            *(scale.data_ptr(), normed.data_ptr(), stream.data_ptr()),
            *(source.numel() // max(channels, 1), channels, eps, torch.get_num_threads()),
        )
        self._library.vim_add_norm(ctypes.byref(arguments))
        return normed.to(hidden.dtype), stream

    def conv_silu(self, x: Tensor, weight: Tensor, bias: Tensor, *, reverse: bool) -> Tensor:
        source, taps, offset = _rows(x), weight.float().contiguous(), bias.float().contiguous()
        out = torch.empty(x.shape, dtype=torch.float32, device="cpu")
        arguments = _Conv(
            *(source.data_ptr(), taps.data_ptr(), offset.data_ptr(), *source.stride()[:2]),
            *(out.data_ptr(), *x.shape, taps.shape[1], int(reverse), torch.get_num_threads()),
        )
        self._library.vim_conv_silu(ctypes.byref(arguments))
        return out.to(x.dtype)

    def scan(self, forward: Direction, backward: Direction, z: Tensor | None) -> Tensor:
        shape = forward.u.shape
        gate = _open_gate(shape) if z is None else _rows(z)
        ready = [_ready(forward), _ready(backward)]
        out = torch.empty(shape, dtype=torch.float32, device="cpu")
        arguments = _Scan(
            *(_pointers(direction) for direction in ready),
            *(gate.data_ptr(), *gate.stride()[:2]),
            *(out.data_ptr(), *shape, forward.A_log.shape[1], ready[0].step_weight.shape[1]),
            torch.get_num_threads(),
        )
        self._library.vim_scan(ctypes.byref(arguments))
        return out.to(forward.u.dtype)


def prebuild(
    output_dir: Path = native.PREBUILT_DIR, capabilities: Iterable[str] | None = None
) -> list[Path]:
    """Compile this folder's libraries, by default for every capability of this kind of machine.

    With the default folder, an image or a package needs no compiler. Returns the libraries'
    paths. Raises NativeUnavailable.
    """
    chosen = native.buildable_capabilities() if capabilities is None else capabilities
    output_dir.mkdir(parents=True, exist_ok=True)  # for every user of an image, unlike the cache
    return [
        native.prebuild(source, capability, output_dir)
        for source in (SOURCE, host_copy.SOURCE)
        for capability in chosen
    ]


@cache
def _library() -> native.Loaded:
    loaded = native.load(SOURCE)
    native.join_torch_threads(loaded.library)
    return loaded


def _rows(tensor: Tensor) -> Tensor:
    """float32 with contiguous channels; the tensor itself if it is that already."""
    tensor = tensor.float()
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _open_gate(shape: torch.Size) -> Tensor:
    """(B, L, E) of the one number whose SiLU is 1: the kernel always gates. A view of one row."""
    return torch.full(shape[2:], _OPEN_GATE, device="cpu").expand(shape)


def _ready(d: Direction) -> Direction:
    """As the kernel takes it. Of other dtypes than float32 the product of the steps is rounded, as
    everywhere, so it is made here; the weights have no column then.
    """
    rounded = d.step.dtype != torch.float32
    return Direction(
        u=_rows(d.u),
        step=_rows(d.delta if rounded else d.step),
        step_weight=(d.step_weight[:, :0] if rounded else d.step_weight).float().contiguous(),
        delta_bias=d.delta_bias.float().contiguous(),
        A_log=d.A_log.float().contiguous(),
        B=_rows(d.B),
        C=_rows(d.C),
        D=d.D.float().contiguous(),
    )


def _pointers(d: Direction) -> _Direction:
    tensors = (d.u, d.step, d.step_weight, d.delta_bias, d.A_log, d.B, d.C, d.D)
    strides = (stride for tensor in (d.u, d.step, d.B, d.C) for stride in tensor.stride()[:2])
    return _Direction(*(tensor.data_ptr() for tensor in tensors), *strides)


def self_test(ops: CpuOps) -> None:
    """Compare with the reference on a few numbers. Raises NativeUnavailable."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    reference = ReferenceOps()
    x, weight, bias = random(2, 5, 2 * 19)[..., :19], random(19, 4), random(19)
    forward, backward = (
        Direction(
            u=random(2, 5, 19),
            step=random(2, 5, 3),
            step_weight=random(19, 3),
            delta_bias=random(19),
            A_log=random(19, 16) + torch.linspace(0, 7, 19)[:, None],  # some underflow
            B=random(2, 5, 16),
            C=random(2, 5, 16),
            D=random(19),
        )
        for _ in range(2)
    )
    results = [
        (
            tested.conv_silu(x, weight, bias, reverse=True),
            tested.scan(forward, backward, x),
            *tested.add_norm(x, x, bias, 1e-5),
        )
        for tested in (ops, reference)
    ]
    for got, expected in zip(*results, strict=True):
        error = float((got - expected).norm() / expected.norm())
        if not error <= SELF_TEST_TOLERANCE:
            raise NativeUnavailable(
                f"the library failed its self-test (relative error {error:.1e}): {SOURCE.name} "
                f"built by {native.find_compiler()}; try another compiler with CXX"
            )
