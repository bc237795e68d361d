"""Every family of the table has a fixture, a row in docs/models.md and a preprocessing spec."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from support.fixtures_vim import DATA, NAMES, RELATIVES
from vim_embed import load_model
from vim_embed.models.vim import VimConfig, init_random
from vim_embed.types.preprocessing import VIM_PREPROCESSING
from vim_embed.weights.catalogue import CATALOGUE
from vim_embed.weights.families import ARCHITECTURES, FAMILIES

DOCS = (Path(__file__).parents[3] / "docs" / "models.md").read_text()
# hustvl's switches, of which nobody trained a model: each is compared by the others that have it.
UNTRAINED = {"vim-nocls", "vim-nocls-sum", "vim-rope-front", "vim-rope-nocls"}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_fixture_and_a_row_in_the_docs(name: str) -> None:
    assert f"`{name}`" in DOCS
    assert name in {*RELATIVES.values(), "vim", *UNTRAINED}
    assert all(f"`{size}`" in DOCS and size in CATALOGUE for size in FAMILIES[name].sizes)


@pytest.mark.parametrize("name", [*RELATIVES, *NAMES])
def test_preprocessing(name: str) -> None:
    spec = load_model("mine", DATA / f"{name}.pth", device="cpu").info.preprocessing
    assert (spec.image_size, spec.interpolation) == (64, "bicubic")
    assert (spec.mean, spec.std) == (VIM_PREPROCESSING.mean, VIM_PREPROCESSING.std)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_module_and_its_own_state_dict_agree(name: str) -> None:
    """What a row builds, its own `fits` takes, and no row of other tensors does."""
    family = FAMILIES[name]
    own = {"registers": 3} if name == "mamba-reg" else {}
    config = VimConfig(dim=32, depth=1, image_size=64, **{**family.switches, **own})
    model = family.module(config)
    init_random(model)
    state = model.state_dict()
    assert family.fits(state)
    others = [f for f in FAMILIES.values() if f.fits(state) and f.classifier != family.classifier]
    assert {f.name for f in others} <= {"fastvim", "fastvim-mae"}
    tokens = model(torch.zeros(2, 3, 64, 64))
    assert tokens.shape == (2, model.layout(64, 64).count, 32)


def test_switches_without_a_model_of_their_own() -> None:
    """No class token, averaged and added: the mixer's factor two is all that differs."""
    images = torch.randn(1, 3, 32, 32)
    for averaged in (True, False):
        config = VimConfig(dim=32, depth=1, image_size=32, cls="none", averaged=averaged)
        model = FAMILIES["vim-nocls"].module(config)
        init_random(model)
        layer, patches = model.layers[0], model.embed_patches(images)
        mixed, residual = layer(patches, None)
        if averaged:
            first = mixed
        else:
            torch.testing.assert_close(mixed, 2 * first)
        torch.testing.assert_close(residual, patches)


def test_released_sizes() -> None:
    """Numbers of weights that the papers state, in millions, without the classifier."""
    millions = {
        "vim-tiny": 7, "vim-small": 26, "vim-base": 98, "mamba-reg-small": 26,
        "mamba-reg-base": 98, "mamba-reg-large": 340, "videomamba-middle": 74,
    }  # fmt: skip
    for name, expected in millions.items():
        family, config = ARCHITECTURES[name]
        with torch.device("meta"):
            found = sum(p.numel() for p in family.module(config).parameters()) / 1e6
        assert found == pytest.approx(expected, rel=0.05), name
