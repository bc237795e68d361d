"""A model computes in its own precision while any thread computes, whatever the process allows."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from support.fixtures_vim import DATA
from vim_embed import Embedder, load_model
from vim_embed.inference.hidden_attention import explain
from vim_embed.inference.precision import own_precision
from vim_embed.models.vim import Vim

CPU = torch.device("cpu")
BACKENDS: Any = torch.backends
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 3, 64, 64), dtype=np.uint8)


def test_one_thread_does_not_set_it_back_under_another() -> None:
    convolutions = BACKENDS.cudnn.conv
    before = convolutions.fp32_precision
    inside, leave = threading.Event(), threading.Event()

    def compute() -> None:
        with own_precision(CPU):
            inside.set()
            leave.wait(20)

    other = threading.Thread(target=compute)
    other.start()
    inside.wait(20)
    with own_precision(CPU):
        leave.set()
        other.join()
        assert convolutions.fp32_precision == "ieee"
    assert convolutions.fp32_precision == before


def settings() -> list[str]:
    """What torch says of products and convolutions; the older setting may contradict."""
    try:
        older = torch.get_float32_matmul_precision()
    except RuntimeError:
        older = "contradicts"
    groups = (BACKENDS.cuda.matmul, BACKENDS.mkldnn.matmul, BACKENDS.cudnn.conv)
    return [older, *(group.fp32_precision for group in (*groups, BACKENDS.mkldnn.conv))]


def older_high() -> None:
    torch.set_float32_matmul_precision("high")


def older_medium() -> None:
    torch.set_float32_matmul_precision("medium")


def allow_tf32() -> None:
    BACKENDS.cuda.matmul.allow_tf32 = True


def newer_tf32() -> None:
    BACKENDS.cuda.matmul.fp32_precision = "tf32"


def newer_on_cpu() -> None:
    BACKENDS.mkldnn.matmul.fp32_precision = BACKENDS.mkldnn.conv.fp32_precision = "bf16"


@pytest.fixture
def as_found() -> Iterator[None]:
    before = settings()
    yield
    torch.set_float32_matmul_precision("highest")
    groups = (BACKENDS.cuda.matmul, BACKENDS.mkldnn.matmul, BACKENDS.cudnn.conv)
    for group, value in zip((*groups, BACKENDS.mkldnn.conv), before[1:], strict=True):
        group.fp32_precision = value
    assert settings() == before


@pytest.mark.parametrize(
    "allow", [lambda: None, older_high, older_medium, allow_tf32, newer_tf32, newer_on_cpu]
)
def test_products_and_convolutions_are_full_float32(
    allow: Callable[[], None], as_found: None
) -> None:
    allow()
    before = settings()
    with own_precision(CPU):
        older, *newer = settings()
        assert older == "highest"
        assert set(newer) <= {"none", "ieee"}
        assert not torch._C._get_cublas_allow_tf32()
    assert settings() == before


@pytest.fixture(params=["auto", "torch"])
def model(request: pytest.FixtureRequest) -> Embedder:
    return load_model("micro", DATA / "vim_micro.pth", device="cpu", backend=request.param)


def test_autocast_changes_nothing(model: Embedder) -> None:
    plain, layers = model.embed(PIXELS), model.embed_layers(PIXELS, "all")
    with torch.autocast("cpu", torch.bfloat16):
        assert model.embed(PIXELS).tobytes() == plain.tobytes()
        within = model.embed_layers(PIXELS, "all")
        assert torch.is_autocast_enabled("cpu")
    assert all(within[name].tobytes() == layers[name].tobytes() for name in layers)


@pytest.mark.parametrize("within", [torch.inference_mode, lambda: torch.autocast("cpu")])
def test_a_model_that_is_loaded_within_is_any_other(within: Callable[[], Any]) -> None:
    with within():
        again = load_model("micro", DATA / "vim_micro.pth", device="cpu", backend="torch")
    assert not any(weight.is_inference() for weight in again.module.parameters())
    plain = load_model("micro", DATA / "vim_micro.pth", device="cpu", backend="torch")
    assert again.embed(PIXELS).tobytes() == plain.embed(PIXELS).tobytes()


def test_attention_under_autocast(model: Embedder) -> None:
    assert isinstance(model.module, Vim)
    images = model.normalised(torch.from_numpy(PIXELS))
    plain = explain(model.module, images, 0)
    with torch.autocast("cpu", torch.bfloat16):
        found = explain(model.module, images, 0)
    assert torch.equal(found.attention, plain.attention)
    assert torch.equal(found.norms, plain.norms)
