"""Convolutions in full float32, whichever threads compute: cuDNN would use TF32 unless told."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_LOCK = threading.Lock()
_within = 0
_before = ""


@contextmanager
def without_tf32() -> Iterator[None]:
    """The setting is the whole process's: it goes back when the last of all threads is done."""
    global _within, _before
    convolutions: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    with _LOCK:
        if _within == 0:
            _before = convolutions.fp32_precision
            convolutions.fp32_precision = "ieee"
        _within += 1
    try:
        yield
    finally:
        with _LOCK:
            _within -= 1
            if _within == 0:
                convolutions.fp32_precision = _before
