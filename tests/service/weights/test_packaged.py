"""vim-micro, the trained model of the package: by name, on every kernel, in every dtype."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from support.fixtures_vim import relative_l2
from support.serving import running
from vim_embed import load_model
from vim_embed.cli import main
from vim_embed.errors import WeightsError
from vim_embed.http.app import create_app
from vim_embed.inference.embedder import Embedder
from vim_embed.settings import Settings
from vim_embed.weights import hub
from vim_embed.weights.catalogue import CATALOGUE, parse_model
from vim_embed.weights.hub import PACKAGED, PACKAGED_SOURCE
from vim_embed_client import Client
from vim_embed_client.scoring.mknn import mknn

pytest.importorskip("skimage")
pytest.importorskip("scipy")

from training.evaluate import held_out

FILE = PACKAGED / "vim-micro.safetensors"
_IMAGES = 48
_CERTIFIED = 24  # of them
OUTLIERS = (3, 9, 17, 30, 44, 60)
Pixels = NDArray[np.uint8]
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def pixels() -> Pixels:
    return held_out(48).space[:_IMAGES]


@pytest.fixture(scope="module")
def reference() -> Embedder:
    return load_model("vim-micro", device="cpu", backend="reference")


@pytest.fixture(scope="module")
def right(reference: Embedder, pixels: Pixels) -> NDArray[Any]:
    return reference.embed(pixels)


def test_the_file_and_what_the_loader_says_of_it(reference: Embedder) -> None:
    assert FILE.stat().st_size < 8_000_000
    assert {tensor.dtype for tensor in load_file(FILE).values()} == {torch.float16}
    with safe_open(FILE, "pt") as file:
        assert json.loads(file.metadata()["recipe"])["steps"] > 0
    info = reference.info
    assert (info.name, info.family, info.weights.random) == ("vim-micro", "vim", False)
    assert (info.weights.source, info.weights.file) == (PACKAGED_SOURCE, FILE.name)
    assert info.preprocessing.image_size == 48


def test_names_and_other_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_model("vim-micro-bfloat16", device="cpu").info.dtype == "bfloat16"
    mine = tmp_path / "mine.safetensors"
    mine.write_bytes(FILE.read_bytes())
    assert load_model("vim-micro", mine, device="cpu").info.weights.source == str(mine)
    assert parse_model("vim-micro=org/repo").repo == "org/repo"
    listed = CliRunner().invoke(main, ["models"]).output
    assert "vim-micro.safetensors of this package" in listed
    monkeypatch.setattr(hub, "PACKAGED", tmp_path)
    with pytest.raises(WeightsError, match="install vim-embed anew"):
        hub.locate(CATALOGUE["vim-micro"])


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize(
    ("dtype", "error", "kept"),
    [("float32", 1e-5, 0.999), ("float16", 2e-3, 0.97), ("bfloat16", 2e-2, 0.85)],
)
def test_every_kernel_and_dtype_keeps_the_neighbours(
    pixels: Pixels, right: NDArray[Any], backend: str, dtype: str, error: float, kept: float
) -> None:
    found = load_model("vim-micro", device="cpu", backend=backend, dtype=dtype).embed(pixels)
    assert 0 < relative_l2(found, right) < error
    assert mknn(found, right, 10) >= kept


def test_exact_mode_and_http(pixels: Pixels, right: NDArray[Any]) -> None:
    model = load_model("vim-micro", device="cpu")
    few = pixels[:5]
    exact = model.embed(few, exact=True)
    assert all((model.embed(few[i : i + 1], exact=True) == exact[i]).all() for i in range(5))
    settings = Settings(models=("vim-micro",), device="cpu")
    with running(create_app(settings)) as url, Client(url) as client:
        found = client.embed(few, exact=True)
        layers = client.embed_layers(few, granularity="blocks")
    assert (found.embeddings == exact).all()
    assert relative_l2(found.embeddings, right[:5]) < 1e-5
    assert found.provenance.model == "vim-micro"
    assert found.provenance.weights_digest == model.info.weights.digest
    assert sum(name.startswith("layers.") for name in layers) == 4


def scale_channels(state: State) -> None:
    state["layers.1.norm.weight"][list(OUTLIERS)] *= 30


def overflow_of_white(state: State) -> None:
    """A channel that sums an image's light: 70,000 for a white patch, -57,000 for a black one."""
    state["patch_embed.proj.weight"][5] = 150.0


def swap_directions(state: State) -> None:
    for name in list(state):
        other = name.replace("conv1d.", "conv1d_b.").replace("_proj.", "_proj_b.")
        other = other.replace("A_log", "A_b_log")
        other = f"{name}_b" if name.endswith(".D") else other
        if other != name and other in state:
            state[name], state[other] = state[other], state[name]


Certify = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def certify(tmp_path: Path, pixels: Pixels) -> Certify:
    """Of the packaged weights after a change, on images of which number 15 is white."""
    white = np.full_like(pixels[:1], 255)

    def run(change: Callable[[State], None], *flags: str) -> tuple[int, dict[str, Any]]:
        images, path = tmp_path / "images.npy", tmp_path / "changed.safetensors"
        np.save(images, np.concatenate([pixels[:15], white, pixels[15:_CERTIFIED]]))
        state = load_file(FILE)
        change(state)
        with safe_open(FILE, "pt") as file:
            save_file(state, path, file.metadata())
        arguments = ["certify", "--model", f"m={path}", "--dtype", "float16", "--device", "cpu"]
        arguments += ["--images", str(images), "-o", str(tmp_path / "found.json"), *flags]
        code = CliRunner().invoke(main, arguments).exit_code
        return code, json.loads((tmp_path / "found.json").read_text())

    return run


def test_its_certificate(certify: Certify) -> None:
    code, report = certify(lambda state: None)
    assert (code, report["certificate"]["faults"]) == (0, [])


def test_its_certificate_finds_scaled_channels(certify: Certify) -> None:
    _, report = certify(scale_channels)
    found = {one["stage"]: one["channels"] for one in report["outlier_channels"]}
    assert found["layers.1.norm"] == list(OUTLIERS)
    assert any("outlier channels" in text for text in report["cautions"])


def test_its_certificate_finds_an_image_that_overflows(certify: Certify) -> None:
    code, report = certify(overflow_of_white)
    assert code == 1
    (fault,) = report["certificate"]["faults"]
    assert fault.startswith(f"1 of {_CERTIFIED + 1} images give NaN or infinite values in float16")
    assert "images.npy#15" in fault


def test_its_certificate_finds_swapped_directions(certify: Certify) -> None:
    code, report = certify(swap_directions, "--against", str(FILE))
    assert code == 1
    assert "times what rounding to float16 makes" in report["certificate"]["faults"][0]
