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
    assert held.nbytes <= memory["allocated"] <= memory["reserved"]
    text = Metrics(lambda: 0.0, engine=engine).text().decode()
    assert 'vim_embed_gpu_memory_bytes{state="reserved"}' in text
