"""Exact mode: an image alone, in sevens and in 22s gives the same bytes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from support.fake_graphs import RecordedCapture
from support.fixtures_vim import load_fixture, relative_l2
from vim_embed import Embedder, load_model
from vim_embed.inference import embedder
from vim_embed.inference.exact import in_fixed_batches, rows_are_independent

PIXELS = np.random.default_rng(3).integers(0, 256, (22, 3, 64, 64), dtype=np.uint8)


def micro(backend: str = "auto", exact_rows: int = 0, dtype: str = "float32") -> Embedder:
    path = load_fixture("vim_micro").path
    return load_model(
        "micro", path, device="cpu", backend=backend, exact_rows=exact_rows, dtype=dtype
    )


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("exact_rows", [0, 8])
def test_equal_bytes(backend: str, exact_rows: int, dtype: str) -> None:
    model = micro(backend, exact_rows, dtype)
    whole = model.embed(PIXELS, exact=True)
    sevens = [model.embed(PIXELS[i : i + 7], exact=True) for i in range(0, 22, 7)]
    alone = [model.embed(row, exact=True) for row in PIXELS]
    assert np.concatenate(sevens).tobytes() == whole.tobytes()
    assert np.concatenate(alone).tobytes() == whole.tobytes()
    assert relative_l2(whole, model.embed(PIXELS)) < (1e-5 if dtype == "float32" else 5e-3)


@pytest.mark.parametrize("granularity", ["blocks", "all"])
def test_layers_too(granularity: str) -> None:
    model = micro(exact_rows=8)
    whole = model.embed_layers(PIXELS[:9], granularity, exact=True)
    alone = [model.embed_layers(row, granularity, exact=True) for row in PIXELS[:9]]
    for name, value in whole.items():
        assert np.concatenate([one[name] for one in alone]).tobytes() == value.tobytes()


def test_every_batch_has_the_same_shape() -> None:
    """Whatever the graphs' own buckets are: they may differ between a server and a script."""
    for rows in (4, 64):
        model, capture = micro(), RecordedCapture()
        model.use_graphs(rows, capture)
        model.settle_exact(6)
        assert model.info.exact_rows == 6
        found = np.concatenate(
            [model.embed(PIXELS[:1], exact=True), model.embed(PIXELS[1:20], exact=True)]
        )
        assert [shape[0] for shape in capture.shapes] == [rows, 6]  # the first is a warm-up
        assert relative_l2(found, model.embed(PIXELS[:20])) < 1e-5


def test_larger_images_take_fewer_rows() -> None:
    model, capture = micro(), RecordedCapture()
    model.use_graphs(8, capture)
    model.settle_exact(8)
    model.embed(np.zeros((3, 3, 128, 128), np.uint8), exact=True)
    assert capture.shapes == [(8, 3, 64, 64), (2, 3, 128, 128)]


def by_place(pixels: Tensor) -> dict[str, Tensor]:
    """A library whose rows depend on their place."""
    rows = pixels.float().mean(dim=(2, 3))
    return {"embedding": rows * torch.linspace(1, 2, len(rows))[:, None]}


def by_mates(pixels: Tensor) -> dict[str, Tensor]:
    """A library whose rows depend on one another."""
    rows = pixels.float().mean(dim=(2, 3))
    return {"embedding": rows - 1e-7 * rows.sum(dim=0)}


def faithful(pixels: Tensor) -> dict[str, Tensor]:
    return {"embedding": pixels.double().sum(dim=(2, 3))}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32])
def test_dependence_is_seen(dtype: torch.dtype) -> None:
    like = torch.zeros(1, 3, 8, 8, dtype=dtype)
    assert rows_are_independent(faithful, like, 8)
    assert not rows_are_independent(by_place, like, 8)
    assert not rows_are_independent(by_mates, like, 8)


def test_a_device_that_does_not_hold_it_goes_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    model = micro()
    compute = model.compute

    def dependent(pixels: Tensor, options: object) -> dict[str, Tensor]:
        out = compute(pixels, options)["embedding"]  # type: ignore[arg-type]
        return {"embedding": out + 1e-3 * torch.arange(len(out))[:, None]}

    monkeypatch.setattr(model, "compute", dependent)
    model.settle_exact(8)
    assert model.info.exact_rows == 1
    assert "in batches of 8" in model.info.exact_reason
    whole = model.embed(PIXELS[:5], exact=True)
    assert model.embed(PIXELS[4], exact=True).tobytes() == whole[4:].tobytes()


def test_batches_are_filled_up_and_cut() -> None:
    seen: list[int] = []

    def forward(pixels: Tensor) -> dict[str, Tensor]:
        seen.append(len(pixels))
        return faithful(pixels)

    pixels = torch.rand(11, 3, 4, 4)
    found = in_fixed_batches(forward, pixels, 4)
    assert seen == [4, 4, 4]
    assert torch.equal(found["embedding"], faithful(pixels)["embedding"])


def test_trials_are_not_remembered_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedder, "_TRIALS", 3)
    model = micro(exact_rows=4)
    for side in range(16, 56, 8):
        pixels = np.zeros((2, 3, side, side), np.uint8)
        found = model.embed(pixels, exact=True, image_size=side)
        assert found.tobytes() == model.embed(pixels, exact=True, image_size=side).tobytes()
        assert len(model._independent) <= 3
