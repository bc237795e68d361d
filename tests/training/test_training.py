"""The recipe: disjoint regions, views, a falling loss, and a file that the service loads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from training.card import card, missed
from training.data import HELD_OUT_FROM, PATCH, hubble_patches, regions, simulated_patches
from training.evaluate import WINDOW, figures, held_out, measured, trained, untrained
from training.train import Recipe, Trainer, info_nce, save, train
from training.views import (
    alone,
    blurred,
    ground_view,
    normalised,
    shared_turns,
    space_view,
    stretches,
)

from support.fixtures_vim import relative_l2
from vim_embed.models.vim import Vim, VimConfig
from vim_embed_client.demo.stamps import STAMP_PIXELS, Sources, hubble_picture

TINY = VimConfig(dim=32, depth=2, image_size=32, patch_size=8, stride=8)
RECIPE = Recipe(steps=12, pairs=8, simulated=0.0, warmup=2, decay=4, learning_rate=3e-3)


def test_no_pixel_is_in_both_regions() -> None:
    found = regions()
    assert len(found.held_out) >= 200
    assert len(found.trained) >= 500
    last = np.rint(found.trained.positions[:, 0]).max() + PATCH / 2  # after a patch's last column
    assert last <= HELD_OUT_FROM - STAMP_PIXELS / 2


def test_patches_are_centred_on_their_sources() -> None:
    sources = regions().trained.brightest(5)
    patches = hubble_patches(sources)
    assert patches.shape == (5, 3, PATCH, PATCH)
    picture, (x, y) = hubble_picture(), np.rint(sources.positions[0]).astype(int)
    assert (patches[0, :, PATCH // 2, PATCH // 2] == picture[y, x]).all()


def test_views_are_seeded_and_differ() -> None:
    patches = torch.from_numpy(hubble_patches(regions().trained.brightest(4)))

    def make(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        light = alone(patches, 0.5, generator)
        stretch, turns = stretches(4, generator), shared_turns(4, 0.5, generator)
        space = space_view(light, 32, generator, turns[0], stretch)
        return space, ground_view(light, 32, generator, turns[1], stretch)

    space, ground = make(0)
    assert torch.equal(make(0)[1], ground)
    assert not torch.equal(make(1)[0], space)
    for view in (space, ground):
        assert view.shape == (4, 3, 32, 32)
        assert 0 <= float(view.min()) <= float(view.max()) <= 255
    assert float(normalised(torch.zeros(1, 3, 2, 2))[0, 0, 0, 0]) == pytest.approx(-0.485 / 0.229)


def test_a_share_of_turns_is_shared() -> None:
    generator = torch.Generator().manual_seed(0)
    for share, low, high in ((0.0, 0.0, 0.2), (0.5, 0.45, 0.7), (1.0, 1.0, 1.0)):
        first, second = shared_turns(1000, share, generator)
        assert set(first.tolist()) == set(second.tolist()) == set(range(8))
        assert low <= float((first == second).float().mean()) <= high


def test_a_stretch_changes_the_ellipticity_alone() -> None:
    found = stretches(1000, torch.Generator().manual_seed(0))
    assert torch.allclose(torch.linalg.det(found), torch.ones(1000), atol=1e-5)
    sizes = torch.linalg.svdvals(found)
    ratio = sizes[:, 0] / sizes[:, 1]
    assert 1 <= float(ratio.min()) < 1.05 < 1.9 < float(ratio.max()) < 2.1
    assert torch.allclose(found, found.mT, atol=1e-6)


def test_a_source_alone_is_itself_within_an_aperture() -> None:
    patches = torch.randint(0, 256, (64, 3, PATCH, PATCH), dtype=torch.uint8)
    found = alone(patches, 0.5, torch.Generator().manual_seed(0))
    assert torch.allclose(found[..., 46:50, 46:50], patches[..., 46:50, 46:50].float(), atol=0.5)
    hidden = found[..., :4, :4].flatten(1).std(1) < 20
    assert 16 <= int(hidden.sum()) <= 48
    assert torch.allclose(found[~hidden], patches[~hidden].float(), atol=1e-3)
    assert torch.equal(alone(patches, 0.0, torch.Generator().manual_seed(0)), patches.float())


def test_a_blur_has_the_width_asked_for() -> None:
    point = torch.zeros(2, 1, 41, 41)
    point[:, :, 20, 20] = 1
    found = blurred(point, torch.tensor([1.0, 2.5]))
    at = torch.arange(41) - 20
    for image, sigma in zip(found[:, 0], (1.0, 2.5), strict=True):
        assert float(image.sum()) == pytest.approx(1, abs=1e-4)
        assert float((image.sum(0) * at**2).sum().sqrt()) == pytest.approx(sigma, rel=0.01)


def test_simulated_galaxies_are_seeded() -> None:
    pytest.importorskip("galsim")
    patches = simulated_patches(6, seed=3)
    assert patches.shape == (6, 3, PATCH, PATCH)
    assert (patches == simulated_patches(6, seed=3)).all()
    light = patches.astype(float).mean(axis=(0, 1))
    centre = slice(PATCH // 2 - 4, PATCH // 2 + 4)
    assert light[centre, centre].mean() > 3 * np.median(light)


def test_info_nce_by_hand() -> None:
    first = torch.eye(2)
    expected = np.log(1 + np.exp(-1 / 0.5))
    assert float(info_nce(first, first, 0.5)) == pytest.approx(expected, rel=1e-5)
    swapped = first.flip(0)
    assert float(info_nce(first, swapped, 0.5)) == pytest.approx(expected + 2, rel=1e-5)


def test_the_loss_falls_and_the_seed_decides() -> None:
    real = torch.from_numpy(hubble_patches(regions().trained.brightest(8)))
    first, again = (Trainer(RECIPE, real, real[:0], TINY) for _ in range(2))
    losses = [float(first.step(n)) for n in range(10)]
    assert [float(again.step(n)) for n in range(3)] == losses[:3]
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.2
    assert first.learning_rate(1) == RECIPE.learning_rate
    assert first.learning_rate(12) == pytest.approx(0)


def test_a_killed_training_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    """Also for more steps than it was begun for, as long as the rate has not begun to fall."""
    recipe = replace(RECIPE, steps=6, decay=2)
    cpu = torch.device("cpu")
    whole, _ = train(recipe, cpu, config=TINY)
    train(replace(recipe, steps=4), cpu, config=TINY, minutes=0, every=2, state=tmp_path)
    kept = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert kept["done"] == 2
    parts, _ = train(recipe, cpu, config=TINY, state=tmp_path)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, parts.state_dict()[name]), name
    with pytest.raises(ValueError, match="is of another recipe"):
        train(replace(recipe, steps=7), cpu, config=TINY, state=tmp_path)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two steps, with the model in float16's numbers beside it."""
    recipe = Recipe(steps=2, pairs=8, simulated=0.0)
    model, recipe = train(recipe, torch.device("cpu"), config=TINY)
    path = tmp_path_factory.mktemp("training") / "vim-micro.safetensors"
    save(model, path, recipe)
    rounded = {name: tensor.half().float() for name, tensor in model.state_dict().items()}
    torch.save(rounded, path.with_suffix(".pt"))
    return path


def test_the_service_loads_what_was_trained(weights: Path) -> None:
    from training.scan import TrainingOps

    model = trained(weights, "cpu")
    assert model.info.family == "vim"
    assert model.info.preprocessing.image_size == 32
    twin = Vim(TINY, TrainingOps())
    twin.load_state_dict(torch.load(weights.with_suffix(".pt"), weights_only=True))
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), dtype=np.uint8)
    with torch.no_grad():
        right = twin(normalised(torch.from_numpy(pixels).float())).mean(dim=1)
    assert relative_l2(model.embed(pixels), right) < 1e-5


def test_the_card_tells_figures_and_misses(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.card.RANDOM_SEEDS", (3,))
    page, problems = card(weights, "cpu", again=weights)
    table = page.partition("| | packaged | trained again |")[2].partition("\n\n")[0]
    cells = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    assert [name for name, *_ in cells] == ["MKNN", "half-light radius", "colour", "ellipticity"]
    assert all(first.startswith(f"{second} (") for _, first, second in cells)
    assert "rounding in matrix products is all that may differ. The figures" in " ".join(
        page.split()
    )
    assert "lie within the intervals:" in page
    assert "A demonstration, not a scientific instrument" in page
    assert "| trained | 0." in page
    assert "| random, seed 3 | 0." in page
    assert all(name in page for name in ("half-light radius", "colour", "ellipticity"))
    assert any("MKNN is" in problem for problem in problems)


def test_random_weights_miss_the_bars(weights: Path) -> None:
    model, data = trained(weights, "cpu"), held_out(32)
    one = figures(untrained(model, 1), data)
    assert one.mknn.n == len(data.space) >= 200
    assert one.mknn.chance < one.mknn.mknn < 0.65
    assert len(missed(one, [one])) == 5


def test_properties_of_a_drawn_galaxy() -> None:
    y, x = np.mgrid[:80, :80]
    apart = ((x - 40) / 8) ** 2 + ((y - 40) / 4) ** 2
    light = 100 * np.exp(-apart / 2)
    picture = np.stack([light, light, light / 10], axis=2).round().astype(np.uint8)
    sources = Sources(
        positions=np.array([[40.0, 40.0]]), flux=np.array([1.0]), radius=np.array([15.0])
    )
    found = measured(picture, sources)
    # A Gaussian under another one: inverse variances add up.
    along, across = (1 / (1 / side**2 + 1 / WINDOW**2) for side in (8, 4))
    assert found["ellipticity"][0] == pytest.approx(1 - (across / along) ** 0.5, abs=0.01)
    assert found["colour"][0] == pytest.approx(1.0, abs=0.05)
    assert found["half-light radius"][0] == pytest.approx(6.8, abs=0.7)
