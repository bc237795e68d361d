"""The registered attention and the shared projections give transformers' own numbers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import (
    AttentionInterface,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTModel,
)

from vim_embed.models import attention
from vim_embed.models.attention import ATTENTION, replace_products, share_projections

SMALL = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 32}
ENCODERS = {
    "vit": (ViTModel, ViTConfig, {"intermediate_size": 96, "patch_size": 8}),
    "vit without biases": (ViTModel, ViTConfig, {"patch_size": 8, "qkv_bias": False}),
    "dinov2": (Dinov2Model, Dinov2Config, {"patch_size": 8}),
    "clip": (CLIPVisionModel, CLIPVisionConfig, {"patch_size": 8}),
    "siglip": (SiglipVisionModel, SiglipVisionConfig, {"patch_size": 8}),
}


@pytest.fixture(params=ENCODERS)
def pair(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """A random encoder with transformers' eager attention, and the same with ours."""
    model, config, more = ENCODERS[request.param]
    torch.manual_seed(1)
    theirs = model(config(**SMALL, **more, attn_implementation="eager")).eval()
    ours = model(config(**SMALL, **more, attn_implementation=ATTENTION)).eval()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def tokens(model: Any, images: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(images).last_hidden_state
    return found


def test_the_numbers_are_transformers_own(pair: tuple[Any, Any]) -> None:
    theirs, ours = pair
    images = torch.randn(3, 3, 32, 32)
    expected = tokens(theirs, images)
    torch.testing.assert_close(tokens(ours, images), expected, rtol=1e-5, atol=1e-5)
    assert share_projections(ours) == 3
    for again in (images, images.flip(0)):
        found = tokens(ours, again)
        torch.testing.assert_close(found, tokens(theirs, again), rtol=1e-5, atol=1e-5)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, weight in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], weight), name


def test_other_products_take_the_place_of_every_linear_layer(pair: tuple[Any, Any]) -> None:
    """Each with its own weight and bias; those that are not taken stay torch's own."""
    theirs, ours = pair
    made: list[torch.Size] = []

    def make(weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
        if weight.shape[0] == 96:
            return None
        made.append(weight.shape)
        own = weight.double(), None if bias is None else bias.double()
        return lambda x: torch.nn.functional.linear(x.double(), *own).float()

    linear = [m for m in ours.modules() if type(m) is torch.nn.Linear]
    joined = share_projections(ours, make)
    left = [m for m in linear if "forward" not in m.__dict__]
    assert replace_products(ours, make) == len(made) - joined
    assert {m.weight.shape[0] for m in linear if "forward" not in m.__dict__} <= {96}
    assert len(left) + 3 * joined == len(linear)
    images = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(tokens(ours, images), tokens(theirs, images), rtol=1e-5, atol=1e-5)
    twin = copy.deepcopy(ours)
    torch.testing.assert_close(tokens(twin, images), tokens(theirs, images), rtol=1e-5, atol=1e-5)


def test_no_mask_is_made_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    masks: list[object] = []

    def watching(*args: Any, **options: Any) -> Any:
        masks.append(args[4])
        return attention.attention(*args, **options)

    monkeypatch.setitem(AttentionInterface._global_mapping, ATTENTION, watching)
    for module in ("transformers.utils.import_utils", "transformers.masking_utils"):
        monkeypatch.setattr(f"{module}.is_tracing", lambda *_: True, raising=False)
    more = ENCODERS["vit"][2]
    model = ViTModel(ViTConfig(**SMALL, **more, attn_implementation=ATTENTION)).eval()
    tokens(model, torch.randn(1, 3, 32, 32))
    assert masks == [None] * 3


def test_a_part_that_is_asked_for_twice_is_computed_again() -> None:
    class Attention(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value = (torch.nn.Linear(4, 6) for _ in range(3))

    module = Attention()
    names = ("query", "key", "value")
    plain = {name: [p.clone() for p in getattr(module, name).parameters()] for name in names}
    assert share_projections(module) == 1
    first, second = torch.randn(2, 5, 4), torch.randn(2, 5, 4)
    for name, data in [("key", first), ("key", first), ("query", second), ("value", first)]:
        found = getattr(module, name)(data)
        torch.testing.assert_close(found, torch.nn.functional.linear(data, *plain[name]))
