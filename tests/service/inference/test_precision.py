"""Convolutions stay in float32 while any thread computes."""

from __future__ import annotations

import threading
from typing import Any

import torch

from vim_embed.inference.precision import without_tf32


def test_one_thread_does_not_set_it_back_under_another() -> None:
    convolutions: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = convolutions.fp32_precision
    inside, leave = threading.Event(), threading.Event()

    def compute() -> None:
        with without_tf32():
            inside.set()
            leave.wait(20)

    other = threading.Thread(target=compute)
    other.start()
    inside.wait(20)
    with without_tf32():
        leave.set()
        other.join()
        assert convolutions.fp32_precision == "ieee"
    assert convolutions.fp32_precision == before
