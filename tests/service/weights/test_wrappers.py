"""Wrappers, prefixes and heads of trainers: the one model in a file is found, or it is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from support.fixtures_vim import load_fixture, raw_checkpoint, relative_l2
from vim_embed import load_model
from vim_embed.errors import WeightsError

MICRO = raw_checkpoint("vim_micro")
STATE: dict[str, torch.Tensor] = MICRO["model"]
ENCODER = {key: value for key, value in STATE.items() if not key.startswith("head.")}
OTHER = {key: value * 1.05 for key, value in ENCODER.items()}


def under(prefix: str, state: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in (state or ENCODER).items()}


def place_of(content: object, folder: Path, words: str = "vim") -> str:
    """Save, load, compare with the original code; what provenance says of where it was."""
    torch.save(content, folder / "x.ckpt")
    model = load_model("mine", f"{words}:{folder / 'x.ckpt'}", device="cpu")
    fixture = load_fixture("vim_micro")
    assert relative_l2(model.embed(fixture.pixel_values), fixture.mean) < 1e-5
    return model.info.weights.tensors


PREFIXES = [
    "model.", "net.", "backbone.", "encoder.", "_orig_mod.", "module.", "model._orig_mod.",
    "module.model.backbone.", "_orig_mod.module.encoder.vim.", "student.backbone.",
]  # fmt: skip
WRAPPERS = [
    "model", "state_dict", "model_state_dict", "net", "state_dict_ema", "model_ema", "module",
    "weights", "network", "params", "ema_state_dict",
]  # fmt: skip


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes(prefix: str, tmp_path: Path) -> None:
    assert place_of({"state_dict": under(prefix)}, tmp_path) == f"state_dict, prefix {prefix}"
    assert place_of(under(prefix), tmp_path) == f"the file itself, prefix {prefix}"


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers(wrapper: str, tmp_path: Path) -> None:
    assert place_of({wrapper: ENCODER, "epoch": 3, "optimizer": {"state": {}}}, tmp_path) == wrapper


def test_nested(tmp_path: Path) -> None:
    content = {"checkpoint": {"model": {"state_dict": under("module.")}}, "epoch": 1}
    assert place_of(content, tmp_path) == "checkpoint.model.state_dict, prefix module."


@pytest.mark.parametrize(
    "key",
    [
        "head.weight", "classifier.weight", "fc.weight", "heads.0.weight", "head_dist.bias",
        "mlp_head.0.weight", "projector.2.weight", "linear.weight",
        "aux_head.weight",
    ],
)  # fmt: skip
def test_heads_of_other_names(key: str, tmp_path: Path) -> None:
    state = {**ENCODER, key: torch.ones(7)}
    assert place_of({"model": state}, tmp_path) == f"model; not used: {key.split('.')[0]}"


@pytest.mark.parametrize(
    "key", ["layers.0.mlp.fc1.weight", "pos_drop.scale", "neck.weight", "norm_pre.weight"]
)
def test_parts_that_another_model_computes_with_are_no_heads(key: str, tmp_path: Path) -> None:
    torch.save({"model": {**STATE, key: torch.ones(7)}}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=f"unknown: {key}"):
        load_model("mine", f"vim:{tmp_path / 'x.pth'}", device="cpu")


def test_other_modules_beside_a_prefixed_encoder(tmp_path: Path) -> None:
    state = {**under("backbone."), "head.weight": torch.ones(3), "loss.scale": torch.ones(1)}
    assert place_of({"state_dict": state}, tmp_path) == "state_dict, prefix backbone."


def test_averaged_and_plain(tmp_path: Path) -> None:
    """DeiT's evaluation reads `model`; Lightning's and timm's the average."""
    assert place_of({"model": ENCODER, "model_ema": OTHER}, tmp_path) == "model"
    assert place_of({"model": OTHER, "model_ema": ENCODER}, tmp_path, "vim+ema") == "model_ema"
    timm = {"state_dict": OTHER, "state_dict_ema": ENCODER}
    assert place_of(timm, tmp_path) == "state_dict_ema"
    timm = {"state_dict": ENCODER, "state_dict_ema": OTHER}
    assert place_of(timm, tmp_path, "vim+plain") == "state_dict"
    assert place_of({"model": ENCODER, "model_ema": None}, tmp_path) == "model"
    torch.save({"model": ENCODER}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="holds no ema weights; it holds: model"):
        load_model("mine", f"vim+ema:{tmp_path / 'x.pth'}", device="cpu")


def test_two_models_that_differ_are_refused(tmp_path: Path) -> None:
    torch.save({**under("student."), **under("teacher.", OTHER)}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"differ: .*prefix student\.; .*prefix teacher\."):
        load_model("mine", f"vim:{tmp_path / 'x.pth'}", device="cpu")
    same = {**under("student."), **under("teacher.")}
    assert place_of(same, tmp_path) == "the file itself, prefix student."


def test_a_file_without_one_says_what_it_holds(tmp_path: Path) -> None:
    torch.save({"net": {"conv1.weight": torch.ones(2)}, "epoch": 1}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"1 tensors in net \(conv1\.weight"):
        load_model("mine", tmp_path / "x.pth", device="cpu")
    torch.save({"epoch": 1}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="no tensors"):
        load_model("mine", tmp_path / "x.pth", device="cpu")


def test_settings_that_trainers_pickle_beside_them(tmp_path: Path) -> None:
    content = {
        "state_dict": under("model."),
        "hyper_parameters": {
            "model": "vim_micro", "input_size": 64, "schedule": np.linspace(0, 1, 5),
            "best": np.float64(0.7), "output": Path("runs") / "1",
        },
    }  # fmt: skip
    torch.save(content, tmp_path / "x.ckpt")
    model = load_model("mine", tmp_path / "x.ckpt", device="cpu")
    fixture = load_fixture("vim_micro")
    assert relative_l2(model.embed(fixture.pixel_values), fixture.mean) < 1e-5
    assert model.info.family_reason == "its hyper_parameters.model 'vim_micro'"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_safetensors_of_other_dtypes(dtype: torch.dtype, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({k: v.to(dtype) for k, v in under("module.").items()}, path, {"model": "vim_micro"})
    model = load_model("mine", path, device="cpu")
    fixture = load_fixture("vim_micro")
    bar = {torch.bfloat16: 3e-2, torch.float16: 3e-3, torch.float64: 1e-5}[dtype]
    assert relative_l2(model.embed(fixture.pixel_values), fixture.mean) < bar
    assert model.info.dtype == "float32"


def test_a_bfloat16_tensor_that_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({**ENCODER, "head.weight": torch.ones(3, 64, dtype=torch.bfloat16)}, path)
    fixture = load_fixture("vim_micro")
    model = load_model("mine", f"vim:{path}", device="cpu")
    assert relative_l2(model.embed(fixture.pixel_values), fixture.mean) < 1e-5


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_no_numbers(value: float, tmp_path: Path) -> None:
    state = {key: tensor.clone() for key, tensor in STATE.items()}
    state["layers.1.mixer.D_b"][3] = value
    state["norm_f.weight"][0] = value
    torch.save({**MICRO, "model": state}, tmp_path / "x.pth")
    with pytest.raises(WeightsError) as error:
        load_model("mine", tmp_path / "x.pth", device="cpu")
    assert "NaN or infinite values in layers.1.mixer.D_b, norm_f.weight" in str(error.value)
    assert "--backend" not in str(error.value)


def test_a_head_that_is_no_number_does_not_matter(tmp_path: Path) -> None:
    head = torch.full((3, 64), math.nan)
    assert place_of({"model": {**ENCODER, "head.weight": head}}, tmp_path)


def test_values_that_the_dtype_cannot_hold(tmp_path: Path) -> None:
    state: dict[str, Any] = {**STATE, "norm_f.weight": STATE["norm_f.weight"] * 1e6}
    torch.save({**MICRO, "model": state}, tmp_path / "x.pth")
    assert load_model("mine", tmp_path / "x.pth", device="cpu").info.dim == 64
    with pytest.raises(WeightsError, match=r"too large for float16 in norm_f\.weight"):
        load_model("mine", tmp_path / "x.pth", device="cpu", dtype="float16")


@pytest.mark.parametrize("key", ["norm_f.weight", "layers.0.mixer.A_log"])
def test_whole_numbers_are_no_weights(key: str, tmp_path: Path) -> None:
    torch.save({**MICRO, "model": {**STATE, key: STATE[key].to(torch.int8)}}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=rf"no floating-point numbers: {key} is torch\.int8"):
        load_model("mine", tmp_path / "x.pth", device="cpu")
