"""The fused forward's blocks under the names, with the numbers and in the order of the module's."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from support.fake_graphs import RecordedCapture
from support.fixtures_vim import load_fixture, relative_l2
from vim_embed import Embedder, load_model
from vim_embed.models.vim import Block, Vim
from vim_embed.types.model_info import EMBEDDING, EmbedOptions
from vim_embed.types.preprocessing import NORMALISED, Scaling

PIXELS = np.random.default_rng(4).integers(0, 256, (9, 3, 64, 64), dtype=np.uint8)


def scaled(pixels: Tensor, scaling: Scaling) -> Tensor:
    scale, offset = (torch.tensor(value).view(3, 1, 1) for value in vars(scaling).values())
    return pixels.float() * scale + offset


class StandIn:
    rounding = None
    """FusedVim's interface on the readable model; like it, one buffer for every block."""

    def __init__(self, model: Vim) -> None:
        self.model, self.calls, self.cls_calls = model, 0, 0

    def token_count(self, height: int, width: int) -> int:
        return self.model.token_count(height, width)

    def cls_index(self, tokens: int) -> int:
        return self.model.cls_index(tokens)

    def __call__(
        self,
        pixel_values: Tensor,
        *,
        scaling: Scaling = NORMALISED,
        on_block: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        self.calls += 1
        hidden, residual = self.model.embed_patches(scaled(pixel_values, scaling)), None
        shown = torch.empty_like(hidden)
        for index, layer in enumerate(self.model.layers):
            assert isinstance(layer, Block)
            hidden, residual = layer(hidden, residual)
            shown.copy_(hidden + residual)
            if on_block is not None:
                on_block(index, shown)
        shown.fill_(torch.nan)
        tokens: Tensor = self.model.norm_f(hidden, residual)[0]
        return tokens

    def cls(self, pixel_values: Tensor, *, scaling: Scaling = NORMALISED) -> Tensor:
        self.cls_calls += 1
        tokens: Tensor = self.model(scaled(pixel_values, scaling))
        return tokens[:, self.cls_index(tokens.shape[1])]


@pytest.fixture
def slow() -> Embedder:
    return load_model("micro", load_fixture("vim_micro").path, device="cpu")


@pytest.fixture
def stand_in(slow: Embedder) -> StandIn:
    assert isinstance(slow.module, Vim)
    return StandIn(slow.module)


@pytest.fixture
def fast(slow: Embedder, stand_in: StandIn) -> Embedder:
    return Embedder(slow.info, slow.module, slow.device, stand_in)


@pytest.mark.parametrize("rows", [1, 9])
@pytest.mark.parametrize("pooling", ["mean", "cls", "patch-mean"])
def test_blocks(fast: Embedder, slow: Embedder, stand_in: StandIn, pooling: str, rows: int) -> None:
    found = fast.embed_layers(PIXELS[:rows], "blocks", pooling)
    expected = slow.embed_layers(PIXELS[:rows], "blocks", pooling)
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert relative_l2(found[name], value) < 1e-5, name
    assert relative_l2(found["last_hidden_state"], fast.embed(PIXELS[:rows], pooling)) < 1e-5
    assert stand_in.calls >= 1


@pytest.mark.parametrize("granularity", ["residual", "leaves", "all"])
def test_other_granularities_look_into_the_module(
    fast: Embedder, slow: Embedder, stand_in: StandIn, granularity: str
) -> None:
    found = fast.embed_layers(PIXELS, granularity)
    assert list(found) == list(slow.embed_layers(PIXELS, granularity))
    assert stand_in.calls == 0


def test_blocks_in_graphs_and_exact(fast: Embedder, stand_in: StandIn) -> None:
    eager = fast.embed_layers(PIXELS)
    capture = RecordedCapture()
    fast.use_graphs(4, capture)
    fast.settle_exact(4)
    for _ in range(2):
        found = fast.embed_layers(PIXELS)
        assert list(found) == list(eager)
        assert all(relative_l2(found[name], eager[name]) < 1e-5 for name in eager)
    whole = fast.embed_layers(PIXELS, exact=True)
    alone = [fast.embed_layers(row, exact=True) for row in PIXELS]
    for name, value in whole.items():
        assert np.concatenate([one[name] for one in alone]).tobytes() == value.tobytes()
    assert capture.replays > 0


@pytest.mark.parametrize("layers", [None, "blocks"])
def test_bytes_with_another_mean_and_std(
    fast: Embedder, slow: Embedder, stand_in: StandIn, layers: str | None
) -> None:
    options = EmbedOptions(mean=(0.1, 0.5, 0.9), std=(0.2, 0.3, 0.4), layers=layers)
    pixels = torch.from_numpy(PIXELS)
    found, expected = fast.compute(pixels, options), slow.compute(pixels, options)
    assert list(found) == list(expected)
    assert all(relative_l2(found[name], expected[name]) < 1e-5 for name in expected)
    if layers is None:
        plain = fast.compute(pixels, EmbedOptions())[EMBEDDING]
        assert relative_l2(found[EMBEDDING], plain) > 1e-2
    assert stand_in.calls >= 1


def test_the_names_are_those_announced(fast: Embedder) -> None:
    assert list(fast.embed_layers(PIXELS[:1])) == fast.layer_names()["blocks"]


def test_the_class_token_alone_takes_the_shorter_way(
    fast: Embedder, slow: Embedder, stand_in: StandIn
) -> None:
    assert relative_l2(fast.embed(PIXELS, "cls"), slow.embed(PIXELS, "cls")) < 1e-5
    assert (stand_in.calls, stand_in.cls_calls) == (0, 1)
