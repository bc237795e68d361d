"""Chooses the kernels once, with a reason that `/models` shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from threading import Lock

import torch

from vim_embed.kernels import mamba_ssm
from vim_embed.kernels.chunked import ChunkedOps
from vim_embed.kernels.cpu.compile import NativeUnavailable, cpu_capability
from vim_embed.kernels.cpu.ops import CpuOps, self_test
from vim_embed.kernels.ops import MixerOps
from vim_embed.kernels.reference import ReferenceOps


class BackendUnavailable(ValueError):
    """A choice of kernels that cannot work here; the message names the fix."""


@dataclass(frozen=True)
class Backend:
    """The chosen kernels and why."""

    name: str
    reason: str
    ops: MixerOps


Maker = Callable[[torch.device, torch.dtype], Backend]


def _cpu(device: torch.device, dtype: torch.dtype) -> Backend:
    if device.type != "cpu":
        raise BackendUnavailable(f"the cpu backend cannot run on {device.type}: use --device cpu")
    try:
        ops = CpuOps()
        self_test(ops)
    except NativeUnavailable as error:
        raise BackendUnavailable(str(error)) from error
    converted = "" if dtype == torch.float32 else f", {dtype} converted to float32"
    return Backend(ops.name, f"C++ kernels for {cpu_capability()}, {ops.origin}{converted}", ops)


def _torch(device: torch.device, dtype: torch.dtype) -> Backend:
    return Backend(
        "torch",
        "chunked plain torch: runs anywhere, several times slower than kernels",
        ChunkedOps(),
    )


def _reference(device: torch.device, dtype: torch.dtype) -> Backend:
    return Backend("reference", "plain torch, the specification; slow", ReferenceOps())


def _mamba_ssm(device: torch.device, dtype: torch.dtype) -> Backend:
    works, reason = mamba_ssm.supports(dtype, device)
    if not works:
        raise BackendUnavailable(f"the mamba_ssm backend cannot run: {reason}")
    return Backend("mamba_ssm", f"public kernels: {reason}", mamba_ssm.MambaSsmOps())


# A maker raises BackendUnavailable where its kernels cannot work.
MAKERS: dict[str, Maker] = {
    "cpu": _cpu,
    "mamba_ssm": _mamba_ssm,
    "torch": _torch,
    "reference": _reference,
}

# What "auto" tries on a device type, best first; "torch" ends every list.
PREFERENCES: dict[str, tuple[str, ...]] = {"cpu": ("cpu",), "cuda": ()}

_lock = Lock()


def select_backend(requested: str, device: torch.device, dtype: torch.dtype) -> Backend:
    """Choose for a device and compute dtype; the same choice is made only once.

    requested: "auto" (the best that works here, the reason saying what did not) or a name of
    MAKERS. Raises BackendUnavailable if a named backend cannot work here.
    """
    if requested != "auto" and requested not in MAKERS:
        raise BackendUnavailable(f"unknown backend {requested!r}: use auto, {', '.join(MAKERS)}")
    with _lock:
        return _selected(requested, device.type, dtype)


@cache
def _selected(requested: str, device_type: str, dtype: torch.dtype) -> Backend:
    device = torch.device(device_type)
    if requested != "auto":
        return MAKERS[requested](device, dtype)
    return _best(device, dtype)


def _best(device: torch.device, dtype: torch.dtype) -> Backend:
    missing = []
    for name in PREFERENCES.get(device.type, ()):
        try:
            chosen = MAKERS[name](device, dtype)
        except BackendUnavailable as error:
            missing.append(f"{name}: {error}")
        else:
            return _with_reason(chosen, missing)
    return _with_reason(MAKERS["torch"](device, dtype), missing)


def _with_reason(chosen: Backend, missing: list[str]) -> Backend:
    if not missing:
        return chosen
    reason = f"{chosen.reason} (unavailable: {'; '.join(missing)})"
    return Backend(chosen.name, reason, chosen.ops)
