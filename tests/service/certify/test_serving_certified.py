"""A certificate is checked against the model that is served, and told with its embeddings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from support.fixtures_vim import DATA
from support.serving import running
from vim_embed import __version__
from vim_embed.cli import main
from vim_embed.engines.build import build_engines
from vim_embed.engines.certified import check_used, load_certified
from vim_embed.http.app import create_app
from vim_embed.inference.embedder import Embedder
from vim_embed.settings import Settings
from vim_embed.types.certificate import Certificate, CertificateError, Kept
from vim_embed.types.devices import device_name
from vim_embed.weights.catalogue import parse_model
from vim_embed.weights.load import load_model
from vim_embed_client import Client
from vim_embed_client.platonic.local import LocalModel

MODEL = f"m=vim:{DATA / 'vim_micro.pth'}"
ENTRY = parse_model(MODEL)


def load(dtype: str) -> Embedder:
    return load_model("m", f"vim:{DATA / 'vim_micro.pth'}", device="cpu", dtype=dtype)


def certificate(dtype: str, kept: float = 0.995, speed: float = 2.0) -> Certificate:
    """One that fits the micro model here."""
    info = load(dtype).info
    mean, cls = (
        Kept(pooling=pooling, kept=kept, std_error=0.001, low=kept - 0.002, high=kept + 0.002)
        for pooling in ("mean", "cls")
    )
    return Certificate(
        model="m",
        dtype=dtype,
        backend=info.backend,
        device=device_name(torch.device("cpu")),
        weights_digest=info.weights.digest,
        preprocessing_digest=info.preprocessing.digest,
        images_digest="sha256:00",
        images=1000,
        k=10,
        kept=(mean, cls),
        speed=speed,
        faults=(),
        version=__version__,
        torch_version=torch.__version__,
        source="m.json",
    )


def write(folder: Path, told: Certificate) -> str:
    path = folder / "m.json"
    path.write_text(json.dumps({"certificate": told.as_dict()}))
    return str(path)


def test_the_models_entry_and_every_answer_tell_it(tmp_path: Path) -> None:
    path = write(tmp_path, certificate("float16", 0.987))
    settings = Settings(models=(MODEL,), device="cpu", dtype="float16", certificates=(path,))
    pixels = np.zeros((1, 3, 64, 64), np.uint8)
    with running(create_app(settings)) as url:
        entry = httpx.get(f"{url}/models/m").json()
        metrics = httpx.get(f"{url}/metrics").text
        with Client(url) as client:
            told = {
                pooling: client.embed(pixels, pooling=pooling).provenance.certificate
                for pooling in ("mean", "cls", "max")
            }
    statement = "float16, 0.987 ± 0.002 of neighbours kept on 1,000 images"
    assert entry["certificate"]["statement"] == statement
    assert entry["certificate"]["kept"][1]["pooling"] == "cls"
    assert entry["dtype_reason"] == "as set"
    checked = {one["what"]: one for one in entry["self_check"]["outputs"]}
    assert 0 < checked["worst token"]["error"] < checked["worst token"]["tolerance"] < 0.01
    error = 'vim_embed_load_check_error{model="m",output="worst token"} '
    assert f"{error}{checked['worst token']['error']}" in metrics
    assert 'vim_embed_load_check_tolerance{model="m",output="cls"}' in metrics
    ascii_statement = statement.replace("±", "+/-")
    assert told == {"mean": ascii_statement, "cls": ascii_statement, "max": ""}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("weights_digest", "sha256:other"),
        ("preprocessing_digest", "sha256:other"),
        ("backend", "fused"),
        ("device", "another"),
        ("torch_version", "1.0"),
        ("version", "9"),
    ],
)
def test_one_that_does_not_fit_fails_the_model_by_name(field: str, value: str) -> None:
    change: dict[str, Any] = {field: value}
    told = replace(certificate("float16"), **change)
    with pytest.raises(CertificateError, match=f"{field.replace('_', ' ')} is .* certified was"):
        load_certified(ENTRY, "float16", [told], 0.99, load)
    model = load_certified(ENTRY, "auto", [told], 0.99, load)
    assert model.info.dtype == "float32"
    assert field.replace("_", " ") in model.info.dtype_reason


def test_auto_takes_the_fastest_that_keeps_what_is_asked() -> None:
    half = certificate("float16", kept=0.9925, speed=2.0)
    brain = certificate("bfloat16", kept=0.95, speed=3.0)
    model = load_certified(ENTRY, "auto", [half, brain], 0.99, load)
    assert (model.info.dtype, model.info.certificate) == ("float16", half)
    assert model.info.dtype_reason.startswith("auto: 2.00 times as fast as float32")
    model = load_certified(ENTRY, "auto", [half, brain], 0.9, load)
    assert model.info.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("certificates", "keep", "reason"),
    [
        ([], 0.99, "no certificate of a faster dtype was given"),
        ([{"kept": 0.9915}], 0.99, "vouches for 0.9895 of neighbours, and 0.99 is asked"),
        ([{"speed": 0.5}], 0.99, "0.50 times as fast as float32"),
    ],
)
def test_auto_falls_back_to_float32_and_says_why(
    certificates: list[dict[str, float]], keep: float, reason: str
) -> None:
    told = [certificate("float16", **given) for given in certificates]
    model = load_certified(ENTRY, "auto", told, keep, load)
    assert (model.info.dtype, model.info.certificate) == ("float32", None)
    assert model.info.dtype_reason.startswith("auto: float32; ")
    assert reason in model.info.dtype_reason


def test_auto_heeds_faults() -> None:
    told = replace(certificate("float16"), faults=("2 of 9 images overflow",))
    model = load_certified(ENTRY, "auto", [told], 0.5, load)
    assert model.info.dtype_reason == "auto: float32; float16: its certificate found: " + (
        "2 of 9 images overflow"
    )


def test_one_without_effect_is_an_error() -> None:
    told = certificate("float16")
    with pytest.raises(CertificateError, match=r"m\.json is for the model m, and served are x"):
        check_used([told], [parse_model(f"x=vim:{DATA / 'vim_micro.pth'}")], "float16")
    with pytest.raises(CertificateError, match="give --dtype float16 or --dtype auto"):
        check_used([told], [ENTRY], "float32")
    check_used([told], [replace(ENTRY, dtype="float16")], "float32")
    check_used([told], [ENTRY], "auto")


def test_settings_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match="cannot be read"):
        build_engines(Settings(models=(MODEL,), certificates=(str(tmp_path / "none.json"),)))
    with pytest.raises(ValueError, match="--keep-neighbours has an effect with --dtype auto"):
        build_engines(Settings(models=(MODEL,), keep_neighbours=0.9))


def test_auto_in_process_as_in_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """platonic-universe's adapter and `bench` load one model by the service's settings."""
    path = write(tmp_path, certificate("float16"))
    monkeypatch.setenv("VIM_EMBED_DTYPE", "auto")
    monkeypatch.setenv("VIM_EMBED_DEVICE", "cpu")
    monkeypatch.setenv("VIM_EMBED_MODELS", MODEL)
    plain = LocalModel.load(MODEL, "mean")
    assert plain.provenance().dtype == "float32"
    assert "in float32 (auto: float32; no certificate of a faster dtype" in plain.describe()
    monkeypatch.setenv("VIM_EMBED_CERTIFICATES", path)
    fast = LocalModel.load(MODEL, "mean")
    assert fast.provenance().dtype == "float16"
    assert "in float16 (auto: 2.00 times as fast as float32" in fast.describe()
    assert fast.half() is fast
    assert plain.half().provenance().dtype == "float16"
    done = CliRunner().invoke(main, ["bench", "--bare", "--seconds", "0", "--rows", "1"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["dtype"] == "float16"


def test_in_process_a_certificate_without_effect_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIM_EMBED_CERTIFICATES", write(tmp_path, certificate("float16")))
    monkeypatch.setenv("VIM_EMBED_MODELS", MODEL)
    with pytest.raises(CertificateError, match="give --dtype float16 or --dtype auto"):
        LocalModel.load(MODEL, "mean")
    done = CliRunner().invoke(main, ["bench", "--bare", "--seconds", "0", "--device", "cpu"])
    assert done.exit_code == 2
    assert "give --dtype float16 or --dtype auto" in done.output
