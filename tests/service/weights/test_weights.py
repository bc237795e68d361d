"""Checkpoint files: every layout that loads, and every broken one with its message."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from support.fixtures_vim import DATA, NAMES, load_fixture, raw_checkpoint, relative_l2
from vim_embed import load_model
from vim_embed.errors import WeightsError
from vim_embed.types.devices import indexed
from vim_embed.weights import load
from vim_embed.weights.checkpoint import build_vim, read_checkpoint
from vim_embed.weights.families import FAMILIES, Word

MICRO = raw_checkpoint("vim_micro")
RELEASED = Word("this test", FAMILIES["vim"])


def _variants() -> dict[str, dict[str, Any]]:
    state = MICRO["model"]
    return {
        "bare.pth": state,
        "model.pth": {"model": state, "epoch": 3},
        "ema.pth": {"model_ema": state, "args": MICRO["args"]},
        "state_dict.pt": {"state_dict": state},
        "module.bin": {"model": {f"module.{key}": value for key, value in state.items()}},
        "half.pth": {"model": {key: value.half().float() for key, value in state.items()}},
    }


@pytest.mark.parametrize("name", _variants())
def test_pickled_layouts(name: str, tmp_path: Path) -> None:
    torch.save(_variants()[name], tmp_path / name)
    fixture = load_fixture("vim_micro")
    model = load_model("mine", f"vim:{tmp_path / name}", device="cpu")
    bar = 1e-2 if name == "half.pth" else 1e-5
    assert relative_l2(model.embed(fixture.pixel_values), fixture.mean) < bar
    assert not model.info.weights.random
    assert model.info.weights.file == name


def test_safetensors(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(MICRO["model"], tmp_path / "vim.safetensors")
    fixture = load_fixture("vim_micro")
    model = load_model("mine", f"vim:{tmp_path / 'vim.safetensors'}", device="cpu")
    assert relative_l2(model.embed(fixture.pixel_values), fixture.mean) < 1e-5


@pytest.mark.parametrize(("name", "stride", "size"), [(NAMES[0], 16, 64), (NAMES[1], 8, 64)])
@pytest.mark.parametrize("told", [True, False])
def test_architecture_is_read_off_the_shapes(
    name: str, stride: int, size: int, told: bool, tmp_path: Path
) -> None:
    content = raw_checkpoint(name)
    torch.save(content if told else content["model"], tmp_path / "vim.pth")
    config = build_vim(read_checkpoint(tmp_path / "vim.pth"), tmp_path, [RELEASED]).module.config
    assert (config.stride, config.image_size) == (stride, size)
    assert config.dim == content["model"]["cls_token"].shape[-1]


def test_a_hostile_pickle_does_not_run(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "owned"),))

    torch.save({"model": MICRO["model"], "args": Hostile()}, tmp_path / "bad.pth")
    with pytest.raises(WeightsError, match="safetensors"):
        load_model("mine", tmp_path / "bad.pth")
    assert not (tmp_path / "owned").exists()


def test_missing_misshaped_and_unknown_keys_are_listed(tmp_path: Path) -> None:
    state = dict(MICRO["model"])
    del state["layers.2.mixer.A_b_log"]
    state["norm_f.weight"] = torch.ones(3)
    state["layers.0.mixer.extra"] = torch.ones(1)
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(WeightsError) as error:
        load_model("mine", f"vim:{tmp_path / 'odd.pth'}")
    message = str(error.value)
    assert "missing: layers.2.mixer.A_b_log" in message
    assert "norm_f.weight is (3,), not (64,)" in message
    assert "unknown: layers.0.mixer.extra" in message


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "cut short"),
        (b"not a checkpoint at all", "more than tensors|cut short"),
        (b"bad", "cut short"),
        ((DATA / "vim_micro.pth").read_bytes()[:5000], "cut short"),
    ],
)
def test_broken_files(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "broken.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=says):
        load_model("mine", tmp_path / "broken.pth")


def test_a_file_of_another_model(tmp_path: Path) -> None:
    torch.save({"model": {"conv1.weight": torch.ones(2)}}, tmp_path / "resnet.pth")
    with pytest.raises(WeightsError, match="not a Vim checkpoint"):
        load_model("mine", tmp_path / "resnet.pth")


def test_a_list_is_no_checkpoint(tmp_path: Path) -> None:
    torch.save([torch.ones(2)], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="not a checkpoint"):
        load_model("mine", tmp_path / "list.pth")


def test_weights_of_another_size_are_refused_under_a_catalogue_name() -> None:
    with pytest.raises(WeightsError, match="its dim is 64, not 192"):
        load_model("vim-tiny", DATA / "vim_micro.pth")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"weights": DATA / "vim_micro.pth", "seed": 0}, "seed=0 has an effect with random"),
        ({"weights": DATA / "vim_micro.pth", "random_weights": True}, "place of .*vim_micro.pth"),
        ({"weights": DATA / "vim_micro.pth", "exact_rows": -1}, "rows, or 0, not -1"),
    ],
)
def test_options_without_effect_are_errors(options: dict[str, Any], says: str) -> None:
    with pytest.raises((ValueError, WeightsError), match=says):
        load_model("micro", device="cpu", **options)


def test_an_encoder_has_no_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder: Any = SimpleNamespace(info=SimpleNamespace(name="vim-tiny-proxy", kind="vit"))
    monkeypatch.setattr(load, "load_entry", lambda *_, **__: encoder)
    assert load_model("vim-tiny-proxy", device="cpu") is encoder
    with pytest.raises(ValueError, match="leave backend='torch' out"):
        load_model("vim-tiny-proxy", device="cpu", backend="torch")


def test_cuda_is_the_device_that_is_current_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the one that is current whenever the model computes, in whichever thread."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert indexed(torch.device("cuda")) == torch.device("cuda:1")
    assert indexed(torch.device("cuda:0")) == torch.device("cuda:0")
    assert indexed(torch.device("cpu")) == torch.device("cpu")


def test_random_weights_are_seeded_and_flagged() -> None:
    models = [load_model("vim-tiny", random_weights=True, device="cpu") for _ in range(2)]
    other = load_model("vim-tiny", random_weights=True, seed=1, device="cpu")
    digests = [model.info.weights.digest for model in (*models, other)]
    assert digests[0] == digests[1] != digests[2]
    assert all(digest.startswith("random-") for digest in digests)
    assert models[0].info.weights.random
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 224, 224), dtype=np.uint8)
    assert np.isfinite(models[0].embed(pixels)).all()
