"""A forward that can be captured in a CUDA graph: nothing is read on the host or sent from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import ViTConfig, ViTModel

from support.fixtures_vim import DATA, RELATIVES, load_fixture
from vim_embed import load_model
from vim_embed.models.attention import ATTENTION
from vim_embed.models.vit import random_vit
from vim_embed.types.model_info import EmbedOptions

# reading a value, sizes that depend on values, and tensors made of Python numbers
HOST = ("_local_scalar_dense", "item", "nonzero", "masked_select", "lift_fresh", "is_nonzero")


class OnDevice(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Fails at an operation that a capture would forbid; `seen` gets the names of the others."""

    def __init__(self, seen: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in HOST, f"{name} needs the host"
        self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vit")
    config = ViTConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        image_size=64,
        patch_size=16,
    )
    ViTModel(config).save_pretrained(path)
    return path


@pytest.mark.parametrize("name", RELATIVES)
def test_relatives(name: str) -> None:
    """At a size whose positions are resampled; of all poolings the one with parts of its own."""
    path = f"{RELATIVES[name]}:{DATA / name}.pth"
    model = load_model("mine", path, device="cpu", backend="torch")
    pixels = torch.zeros(1, 3, 32, 48, dtype=torch.uint8)
    for pooling in ("patch-mean", model.info.poolings[-2]):
        options = EmbedOptions(pooling=pooling)
        model.compute(pixels, options)
        with torch.inference_mode(), OnDevice([]):
            model.compute(pixels, options)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("pooling", ["mean", "cls", "patch-mean"])
@pytest.mark.parametrize("kind", ["vim", "vit"])
def test_forward(kind: str, pooling: str, dtype: str, proxy: Path) -> None:
    path = proxy if kind == "vit" else load_fixture("vim_micro").path
    backend = "torch" if kind == "vim" else "auto"
    model = load_model("mine", path, device="cpu", dtype=dtype, backend=backend)
    pixels = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    options = EmbedOptions(pooling=pooling)
    model.compute(pixels, options)  # what a capture's warm-up leaves behind
    seen: list[str] = []
    with torch.inference_mode(), OnDevice(seen):
        model.compute(pixels, options)
    assert seen
    assert kind == "vim" or any("scaled_dot_product" in name for name in seen)


@pytest.mark.parametrize(
    "fault", [lambda x: x.sum().item(), torch.nonzero, lambda x: x + torch.tensor([1.0])]
)
def test_the_check_sees_faults(fault: Any) -> None:
    with pytest.raises(AssertionError, match="needs the host"), OnDevice([]):
        fault(torch.ones(2))


def test_random_proxies_take_fused_attention() -> None:
    assert random_vit("vim-tiny-proxy", seed=0).model.config._attn_implementation == ATTENTION
