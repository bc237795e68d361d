"""The device's memory as the metrics tell it."""

from __future__ import annotations

import pytest
import torch

from vim_embed.bench.cuda_meter import CudaMeter
from vim_embed.bench.rivals import seeded
from vim_embed.engines.torch_engine import EngineOptions, TorchEngine
from vim_embed.models.vim_fused import FusedVim
from vim_embed.serving.service import build_service
from vim_embed.settings import Settings
from vim_embed.types.preprocessing import VIM_PREPROCESSING, Scaling

pytestmark = pytest.mark.gpu


# MiB of the original model on the public kernels, B = 256 at 224 pixels, in half precision
ORIGINAL = {"vim-tiny": 367, "vim-small": 568, "vim-base": 965}


@pytest.mark.parametrize("name", ORIGINAL)
def test_a_batch_as_it_is_served_takes_no_more_than_the_original(name: str) -> None:
    """Weights, 256 images of bytes and the forward's buffers together."""
    meter = CudaMeter()
    held = meter.clear()
    fused = FusedVim(seeded(name), torch.float16, meter.device)
    pixels = torch.zeros(256, 3, 224, 224, dtype=torch.uint8, device=meter.device)
    scaling = Scaling.of_bytes(VIM_PREPROCESSING.mean, VIM_PREPROCESSING.std)
    peak = meter.peak_mib(lambda: fused.cls(pixels, scaling=scaling), held)
    print(f"{name}: {peak:.0f} MiB")
    assert 100 < peak <= ORIGINAL[name]


def test_held_memory_is_counted() -> None:
    device = torch.device("cuda")
    held = torch.zeros(1_000_000, device=device)
    engine = TorchEngine([], EngineOptions(device=device))
    memory = engine.memory()
    allocated, reserved = (memory[str(device), state] for state in ("allocated", "reserved"))
    assert held.nbytes <= allocated <= reserved
    text = build_service(Settings(), engine).metrics.text().decode()
    assert 'vim_embed_gpu_memory_bytes{device="cuda",state="reserved"}' in text
