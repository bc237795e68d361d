"""Memory that CUDA itself lacks is short memory, not a lost device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from support.fixtures_vim import DATA, relative_l2
from vim_embed.engines.torch_engine import EngineOptions, TorchEngine
from vim_embed.inference.embedder import Embedder
from vim_embed.inference.short_memory import one_short_memory
from vim_embed.types.model_info import EMBEDDING, EmbedOptions
from vim_embed.weights.catalogue import parse_model

SHORT = [
    "CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation' in the manual",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "CUDA driver: CUDA_ERROR_OUT_OF_MEMORY as a stream was made",
]


@pytest.mark.parametrize("message", SHORT)
def test_what_cuda_lacks(message: str) -> None:
    with pytest.raises(torch.OutOfMemoryError, match=message.split()[2]), one_short_memory():
        raise RuntimeError(message)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: unknown\nit was not out of memory"),
        RuntimeError("the shapes do not fit"),
        ValueError("CUDA error: out of memory"),
        torch.OutOfMemoryError("Tried to allocate 20 MiB"),
    ],
)
def test_all_else_stays_what_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as found, one_short_memory():
        raise error
    assert found.value is error


@pytest.mark.parametrize("message", SHORT)
def test_the_engine_halves_its_batch(message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = EngineOptions(torch.device("cpu"), backend="torch")
    engine = TorchEngine([parse_model(f"micro={DATA / 'vim_micro.pth'}")], options)
    engine.load()
    pixels = np.random.default_rng(0).integers(0, 256, (7, 3, 64, 64), dtype=np.uint8)

    def embedded() -> NDArray[np.float32]:
        return engine.run(engine.stage("micro", [pixels], EmbedOptions()))[EMBEDDING]

    expected, compute, sizes = embedded(), Embedder.compute, []

    def short(model: Embedder, images: Tensor, options: EmbedOptions) -> dict[str, Tensor]:
        sizes.append(len(images))
        if len(images) > 2:
            raise RuntimeError(message)
        return compute(model, images, options)

    monkeypatch.setattr(Embedder, "compute", short)
    assert relative_l2(embedded(), expected) < 1e-5
    assert max(sizes) == 7
