"""Names of devices and compute dtypes, checked against this machine."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch

DTYPES = {
    "float32": torch.float32,
    "float32-ieee": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}

_CURE = (
    "use --device cpu, or check the driver, that torch is a CUDA build, and that a container is "
    "given GPUs (docker run --gpus all)"
)


def resolve_device(name: str) -> torch.device:
    """ "auto" is the first CUDA device, or the CPU without one. Raises ValueError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"unknown device {name!r}: use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {name!r} is not there: torch sees {torch.cuda.device_count()} CUDA devices; "
            f"{_CURE}"
        )
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device {name!r} is not supported: use auto, cpu, cuda or cuda:N")
    return device


def indexed(device: torch.device) -> torch.device:
    """The device by its number: `cuda` alone is the one that is current here and now, and another
    thread has another.
    """
    if device == torch.device("cuda"):
        return torch.device("cuda", torch.cuda.current_device())
    return device


def resolve_devices(names: str) -> list[torch.device]:
    """Devices with commas between (a number is a CUDA device), or "all" of them, or ValueError."""
    if names.strip() == "all":
        names = ",".join(f"cuda:{n}" for n in range(torch.cuda.device_count()))
        if not names:
            raise ValueError(f"torch sees no CUDA device: {_CURE}")
    given = [name.strip() for name in names.split(",")]
    devices = [resolve_device(f"cuda:{name}" if name.isdecimal() else name) for name in given]
    if len(devices) > 1:
        devices = [torch.device("cuda", 0) if d == torch.device("cuda") else d for d in devices]
    twice = sorted({str(d) for d in devices if devices.count(d) > 1})
    if twice:
        raise ValueError(f"device {', '.join(twice)} is given twice")
    return devices


def memory_share(most: str, total: int) -> float:
    """The share of `total` bytes that `most` is: a share itself (0.5), or bytes (20GB, 512MiB).

    Raises ValueError.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMGT]?)(i?)(B?)", most.strip())
    if found is None:
        raise ValueError(f"{most!r} is no size of memory: use a share as 0.5, or bytes as 20GB")
    number, unit, binary, is_bytes = found.groups()
    if not is_bytes and (unit or binary):
        raise ValueError(f"{most!r} has no unit: write {most}B")
    factor = float(1024 if binary else 1000) ** " kMGT".index(unit or " ")
    share = float(number) * factor / (total if is_bytes else 1)
    if not 0 < share <= 1:
        raise ValueError(f"{most!r} is not within the device's memory of {total / 1e9:.1f} GB")
    return share


def cap_memory(devices: Iterable[torch.device], most: str) -> None:
    """Let torch take no more than `most` of each device; see `memory_share`. Raises ValueError.

    What the driver needs beside it (CUDA's context, some hundred MB) is not counted.
    """
    for device in devices:
        if device.type != "cuda":
            raise ValueError(f"gpu_memory is for GPUs, and the device is {device}: leave it out")
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(memory_share(most, total), device.index or 0)


def resolve_dtype(name: str) -> torch.dtype:
    """Raises ValueError for a name that is not a compute dtype."""
    if name not in DTYPES:
        raise ValueError(f"unknown dtype {name!r}: use one of {', '.join(DTYPES)}")
    return DTYPES[name]


def is_ieee(name: str) -> bool:
    """Whether products are plain float32 ones, not sums of half-precision ones on tensor cores.

    Only the fused CUDA kernels know the difference; elsewhere float32 is plain already.
    """
    return name == "float32-ieee"


def device_name(device: torch.device) -> str:
    """What computes, as far as it decides on the last bits: a GPU's name, a CPU's instructions."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU with {torch.backends.cpu.get_cpu_capability()}"
