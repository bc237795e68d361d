"""Chooses the kernels, with a reason that `/models` shows: the whole choice is here.

On CUDA "auto" tries `fused`, the kernels for a whole Vim (models/vim_fused.py, kernels/fused/),
then `mamba_ssm`, the public kernels of its operations, then `torch`. On a CPU it tries `cpu`, then
`torch`. The reason of a later choice names what did not work and why.
"""

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
FUSED = "fused"
# Builds and tries the fused forward of a model and says what it is. Raises BackendUnavailable.
FusedTrial = Callable[[], str]


def _cpu(device: torch.device, dtype: torch.dtype) -> Backend:
    if device.type != "cpu":
        raise BackendUnavailable(f"cpu: it cannot run on {device.type}; use --device cpu")
    try:
        ops = CpuOps()
        self_test(ops)
    except NativeUnavailable as error:
        raise BackendUnavailable(f"cpu: {error}") from error
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
        raise BackendUnavailable(f"mamba_ssm: {reason}")
    return Backend("mamba_ssm", f"public kernels: {reason}", mamba_ssm.MambaSsmOps())


# A maker raises BackendUnavailable where its kernels cannot work.
MAKERS: dict[str, Maker] = {
    "cpu": _cpu,
    "mamba_ssm": _mamba_ssm,
    "torch": _torch,
    "reference": _reference,
}

# What "auto" tries on a device type, best first; "torch" ends every list.
PREFERENCES: dict[str, tuple[str, ...]] = {"cpu": ("cpu",), "cuda": (FUSED, "mamba_ssm")}

_lock = Lock()


def select_backend(
    requested: str, device: torch.device, dtype: torch.dtype, *, fused: FusedTrial | None = None
) -> Backend:
    """Choose for a device and compute dtype; operations are made and tested only once.

    requested: "auto" (the best that works here, the reason saying what did not), "fused" or a name
    of MAKERS. fused: the trial of the model's fused forward; None: there is none to try. Where
    "fused" is chosen, `ops` are those for looking into single layers.
    Raises BackendUnavailable if a named backend cannot work here.
    """
    if requested not in ("auto", FUSED, *MAKERS):
        known = ", ".join(("auto", FUSED, *MAKERS))
        raise BackendUnavailable(f"unknown backend {requested!r}: use one of {known}")
    wanted = (*PREFERENCES.get(device.type, ()), "torch") if requested == "auto" else (requested,)
    missing: list[str] = []
    with _lock:
        for name in wanted:
            try:
                return _with_reason(_make(name, device, dtype, fused), missing)
            except BackendUnavailable as error:
                missing.append(str(error))
    fix = "; use --backend auto" if requested == FUSED else ""
    raise BackendUnavailable("; ".join(missing) + fix)


def _make(name: str, device: torch.device, dtype: torch.dtype, fused: FusedTrial | None) -> Backend:
    if name != FUSED:
        return _made(name, device.type, dtype)
    if fused is None:
        raise BackendUnavailable("fused: these kernels run a whole Vim, and here is none to run")
    reason = fused()
    return Backend(FUSED, reason, _made("torch", device.type, dtype).ops)


@cache
def _made(name: str, device_type: str, dtype: torch.dtype) -> Backend:
    return MAKERS[name](torch.device(device_type), dtype)


def _with_reason(chosen: Backend, missing: list[str]) -> Backend:
    if not missing:
        return chosen
    reason = f"{chosen.reason} (unavailable: {'; '.join(missing)})"
    return Backend(chosen.name, reason, chosen.ops)
