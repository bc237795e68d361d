"""`embed` and the engine share one way of running: the model's own graphs."""

from __future__ import annotations

import gc
import threading
import weakref

import numpy as np
import pytest
import torch

from support.fake_graphs import RecordedCapture
from support.fixtures_vim import load_fixture, relative_l2
from vim_embed import Embedder, load_model
from vim_embed.kernels.constants import Constants
from vim_embed.types.model_info import EmbedOptions


@pytest.fixture
def eager() -> Embedder:
    return load_model("micro", load_fixture("vim_micro").path, device="cpu")


@pytest.fixture
def graphed() -> tuple[Embedder, RecordedCapture]:
    model = load_model("micro", load_fixture("vim_micro").path, device="cpu")
    capture = RecordedCapture()
    model.use_graphs(8, capture)
    return model, capture


def images(rows: int, size: int = 64) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(rows).integers(0, 256, (rows, 3, size, size), dtype=np.uint8)


@pytest.mark.parametrize("rows", [1, 5, 8, 21])
def test_embed_replays_graphs(
    eager: Embedder, graphed: tuple[Embedder, RecordedCapture], rows: int
) -> None:
    model, capture = graphed
    pixels = images(rows)
    for pooling in ("mean", "cls"):
        assert relative_l2(model.embed(pixels, pooling), eager.embed(pixels, pooling)) < 1e-5
    assert capture.replays == 2 * -(-rows // 8)
    assert max(shape[0] for shape in capture.shapes) <= 8


def test_larger_images_take_smaller_batches(graphed: tuple[Embedder, RecordedCapture]) -> None:
    model, capture = graphed
    model.embed(images(5, 128))
    assert {shape[0] for shape in capture.shapes} <= {1, 2}


def test_layers_do_not_replay(eager: Embedder, graphed: tuple[Embedder, RecordedCapture]) -> None:
    """Hooks see no replay, so layers have to be computed eagerly."""
    model, capture = graphed
    found, expected = model.embed_layers(images(3), "all"), eager.embed_layers(images(3), "all")
    assert list(found) == list(expected)
    assert all(relative_l2(found[name], expected[name]) < 1e-5 for name in expected)
    assert capture.replays == 0


def test_threads_do_not_share_a_buffer(
    eager: Embedder, graphed: tuple[Embedder, RecordedCapture]
) -> None:
    model, _ = graphed
    batches = [images(rows) for rows in (3, 5, 7, 8)]
    expected = [eager.embed(batch) for batch in batches]
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(5):
            if relative_l2(model.embed(batches[index]), expected[index]) > 1e-5:
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_warm_up_captures_every_bucket(graphed: tuple[Embedder, RecordedCapture]) -> None:
    model, capture = graphed
    seen: list[tuple[int, int]] = []
    model.warm_up(lambda done, of: seen.append((done, of)))
    assert seen == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    assert [shape[0] for shape in capture.shapes] == [8, 4, 2, 1]
    model.embed(images(8))
    assert len(capture.shapes) == 4


def test_convolutions_keep_the_callers_setting(eager: Embedder) -> None:
    before = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
    eager.embed(images(1))
    assert torch.backends.cudnn.conv.fp32_precision == before  # type: ignore[attr-defined]


def test_a_model_s_memory_is_freed_with_it() -> None:
    """At once, not when cyclic garbage is collected: the next model may need it."""
    model = load_model("micro", load_fixture("vim_micro").path, device="cpu")
    model.use_graphs(8, RecordedCapture())
    model.embed(images(9))
    known = [weakref.ref(kept) for kept in (model, model.module, model._graphs)]
    gc.collect()
    gc.disable()
    try:
        del model
        assert [ref() for ref in known] == [None] * 3
    finally:
        gc.enable()


def test_normalisations_that_callers_name_are_not_kept_for_ever(eager: Embedder) -> None:
    pixels = torch.from_numpy(images(1))
    eager._normalise._numbers = Constants(most_bytes=1_000_000)
    for step in range(200):
        eager._normalise(pixels[:, :, :1, :1], EmbedOptions(mean=(0.5, 0.5, step / 200)))
    assert len(eager._normalise._numbers) < 200
