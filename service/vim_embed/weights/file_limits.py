"""What a weights file may hold, checked before and after it is read.

A hostile one could otherwise fill the memory: by a size it merely claims, by compression, by
tensors that repeat one number, or by an architecture without end.
"""

from __future__ import annotations

import json
import math
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from vim_embed.errors import WeightsError

MAX_BYTES = 16 * 1024**3
MAX_TENSORS = 20_000
MAX_NUMBERS = 4_000_000_000
MAX_HEADER_BYTES = 16 * 1024**2
MAX_DEPTH = 512
MAX_SIDE = 8192  # of images, in pixels


def check_file(path: Path) -> None:
    """Look at a weights file's size and contents, unread. Raises WeightsError."""
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise WeightsError(f"{path} has {size} bytes, more than any model here ({MAX_BYTES})")
    if path.suffix == ".safetensors":
        _check_safetensors(path, size)
    elif zipfile.is_zipfile(path):
        _check_zip(path, size)


def check_tensors(state: Mapping[str, Tensor], path: Path) -> None:
    """Look at tensors before they are copied. Raises WeightsError."""
    if len(state) > MAX_TENSORS:
        raise WeightsError(f"{path} holds {len(state)} tensors, over the limit of {MAX_TENSORS}")
    for name, tensor in state.items():
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise WeightsError(f"{path}: {name} claims more numbers than the file has")
    numbers = sum(tensor.numel() for tensor in state.values())
    if numbers > MAX_NUMBERS:
        raise WeightsError(f"{path} holds {numbers} numbers, over the limit of {MAX_NUMBERS}")


def check_finite(state: Mapping[str, Tensor], path: Path, dtype: torch.dtype | None = None) -> None:
    """Look for NaN and infinite values, or those that `dtype` cannot hold. Raises WeightsError."""
    bad = [name for name, tensor in state.items() if not _finite(tensor)]
    if bad:
        raise WeightsError(
            f"{path} holds NaN or infinite values in {_first(bad)}: its training diverged or the "
            f"file is damaged; use another checkpoint"
        )
    large = torch.finfo(dtype).max if dtype else math.inf
    over = [n for n, t in state.items() if t.numel() and float(t.abs().amax()) > large]
    if over:
        name = str(dtype).removeprefix("torch.")
        raise WeightsError(
            f"{path} holds values too large for {name} in {_first(over)}: use --dtype float32"
        )


def _finite(tensor: Tensor) -> bool:
    """Of the least and the largest value, which NaN would be; one pass and no array between."""
    if not tensor.numel() or not tensor.is_floating_point():
        return True
    return all(math.isfinite(float(value)) for value in tensor.float().aminmax())


def _first(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def _check_safetensors(path: Path, size: int) -> None:
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > min(MAX_HEADER_BYTES, size):
            raise WeightsError(
                f"{path} is no sound safetensors file: its header claims {length} bytes"
            )
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError) as error:
            raise WeightsError(f"{path} is not a readable safetensors file: {error}") from error
    if not isinstance(header, dict) or len(header) > MAX_TENSORS:
        raise WeightsError(f"{path} holds more than {MAX_TENSORS} tensors, or no table of them")


def _check_zip(path: Path, size: int) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise WeightsError(
            f"{path} is not a readable checkpoint, perhaps cut short while downloading: {error}"
        ) from error
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise WeightsError(f"{path} is compressed, which torch.save never does: unpack it first")
    if len(entries) > 2 * MAX_TENSORS or sum(entry.file_size for entry in entries) > size:
        raise WeightsError(f"{path} claims to hold more than it has bytes")
