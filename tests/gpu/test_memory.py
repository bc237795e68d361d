"""The device's memory as the metrics tell it."""

from __future__ import annotations

import pytest
import torch

from vim_embed.metrics import Metrics
from vim_embed.torch_engine import EngineOptions, TorchEngine

pytestmark = pytest.mark.gpu


def test_held_memory_is_counted() -> None:
    device = torch.device("cuda")
    held = torch.zeros(1_000_000, device=device)
    engine = TorchEngine([], EngineOptions(device=device))
    memory = engine.memory()
    allocated, reserved = (memory[str(device), state] for state in ("allocated", "reserved"))
    assert held.nbytes <= allocated <= reserved
    text = Metrics(lambda: 0.0, memory=engine.memory).text().decode()
    assert 'vim_embed_gpu_memory_bytes{device="cuda",state="reserved"}' in text
