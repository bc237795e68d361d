"""A model computes in its own dtype, whatever the process around it allows for its other work."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

_LOCK = threading.Lock()
_within = 0
_undo = ExitStack()


@contextmanager
def own_precision(device: torch.device) -> Iterator[None]:
    """No autocast of the caller's, and no float32 products or convolutions in TF32 or bfloat16.

    cuDNN would use TF32 unless told. A graph keeps what it was captured with, for all its callers.
    """
    with _full_float32(), torch.autocast(device.type, enabled=False):
        yield


@contextmanager
def _full_float32() -> Iterator[None]:
    """The settings are the whole process's: they go back when the last of all threads is done."""
    global _within, _undo
    with _LOCK:
        if _within == 0:
            _undo = _set_full()
        _within += 1
    try:
        yield
    finally:
        with _LOCK:
            _within -= 1
            if _within == 0:
                _undo.close()


def _set_full() -> ExitStack:
    """What sets all back."""
    undo, backends = ExitStack(), torch.backends
    for convolutions in (backends.cudnn.conv, backends.mkldnn.conv):  # type: ignore[attr-defined]
        _keep(convolutions, undo)
        convolutions.fp32_precision = "ieee"
    products: list[Any] = [backends.cuda.matmul, backends.mkldnn.matmul]  # type: ignore[attr-defined]
    if any(product.fp32_precision not in ("none", "ieee") for product in products):
        for product in products:
            _keep(product, undo)
        # The older setting, too: torch multiplies nothing while the two say different things.
        undo.callback(torch.set_float32_matmul_precision, _older_setting())
        torch.set_float32_matmul_precision("highest")
    return undo


def _keep(setting: Any, undo: ExitStack) -> None:
    undo.callback(setattr, setting, "fp32_precision", setting.fp32_precision)


def _older_setting() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # it differs from the newer one
        return "highest"
