"""Certificates of precision: sound models pass, planted trouble is found and named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from support.fixtures_vim import DATA, raw_checkpoint
from vim_embed.certify.neighbours import agreement, interval
from vim_embed.cli import main
from vim_embed.types.certificate import Certificate, CertificateError, parse_certificate
from vim_embed.weights.load import load_model

MICRO = DATA / "vim_micro.pth"
OUTLIERS = (3, 9, 17, 30, 44, 60)
State = dict[str, torch.Tensor]
Run = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 smooth images of 64 pixels, of which number 31 is white."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(20, 120, (48, 3, 8, 8), dtype=np.uint8)
    images = coarse.repeat(8, axis=2).repeat(8, axis=3)
    images[31] = 255
    path = tmp_path_factory.mktemp("certify") / "pictures.npy"
    np.save(path, images)
    return path


@pytest.fixture
def certify(pictures: Path, tmp_path: Path) -> Run:
    def run(weights: Path, *flags: str, dtype: str = "float16") -> tuple[int, dict[str, Any]]:
        output = tmp_path / "found.json"
        arguments = ["certify", "--model", f"m=vim:{weights}", "--dtype", dtype, "--device", "cpu"]
        arguments += ["--images", str(pictures), "-o", str(output), *flags]
        result = CliRunner().invoke(main, arguments)
        assert output.exists(), result.output
        assert output.with_suffix(".md").read_text().startswith(f"# Precision of m in {dtype}")
        return result.exit_code, json.loads(output.read_text())

    return run


def changed(folder: Path, change: Callable[[State], None]) -> Path:
    """The micro checkpoint with some tensors changed, as safetensors."""
    state = {k: v.clone().float() for k, v in raw_checkpoint("vim_micro")["model"].items()}
    change(state)
    path = folder / "changed.safetensors"
    save_file({k: v.contiguous() for k, v in state.items()}, path)
    return path


def scale_norm(state: State) -> None:
    state["layers.1.norm.weight"][list(OUTLIERS)] *= 30


def scale_inputs(state: State) -> None:
    state["layers.2.mixer.in_proj.weight"][list(OUTLIERS)] *= 30


def scale_patches(state: State) -> None:
    state["patch_embed.proj.weight"][list(OUTLIERS)] *= 30
    state["patch_embed.proj.bias"][list(OUTLIERS)] *= 30


def swap_directions(state: State) -> None:
    pairs = ("conv1d.weight", "conv1d.bias", "x_proj.weight", "dt_proj.weight", "dt_proj.bias")
    names = [(name, name.replace(".", "_b.", 1)) for name in pairs]
    names += [("A_log", "A_b_log"), ("D", "D_b")]
    for layer in range(4):
        for one, other in names:
            a, b = (f"layers.{layer}.mixer.{name}" for name in (one, other))
            state[a], state[b] = state[b], state[a]


def overflow_of_white(state: State) -> None:
    """A channel that sums an image's light: 92,000 for a white patch, under 30,000 for others."""
    state["patch_embed.proj.weight"][5] = 50.0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_sound_model_passes(certify: Run, dtype: str) -> None:
    code, report = certify(MICRO, dtype=dtype)
    assert (code, report["passes"], report["certificate"]["faults"]) == (0, True, [])
    assert report["outlier_channels"] == []
    assert report["high_norm_tokens"]["count"] == 0
    kept = {one["pooling"]: one["kept"] for one in report["certificate"]["kept"]}
    assert set(kept) == {"mean", "cls", "patch-mean", "max", "features"}
    assert min(kept.values()) > (0.9 if dtype == "bfloat16" else 0.98)
    bound = {"float16": 2e-3, "bfloat16": 2e-2, "float32": 1e-5}[dtype]
    assert 0 < report["errors"]["tokens"]["median"] < bound
    assert report["errors"]["worst token"]["worst"] >= report["errors"]["tokens"]["worst"]


def test_what_is_certified_is_written_down(certify: Run, pictures: Path) -> None:
    _, report = certify(MICRO)
    info = load_model("m", f"vim:{MICRO}", device="cpu", dtype="float16").info
    told = Certificate.of(report["certificate"])
    assert told.weights_digest == info.weights.digest
    assert told.preprocessing_digest == info.preprocessing.digest
    assert (told.images, told.k, told.backend) == (48, 10, info.backend)
    assert report["images"]["source"] == str(pictures)
    assert report["statement"].startswith("float16, ")
    assert report["statement"].endswith("of neighbours kept on 48 images")


@pytest.mark.parametrize(
    ("change", "stage"),
    [
        (scale_norm, "layers.1.norm"),
        (scale_inputs, "layers.2.mixer.in_proj"),
        (scale_patches, "patch_embed.proj"),
    ],
)
def test_outlier_channels_are_named(
    certify: Run, tmp_path: Path, change: Callable[[State], None], stage: str
) -> None:
    weights = changed(tmp_path, change)
    _, report = certify(weights)
    found = {one["stage"]: one["channels"] for one in report["outlier_channels"]}
    assert found[stage] == list(OUTLIERS)
    assert any("outlier channels" in text for text in report["cautions"])
    code, report = certify(weights, "--against", f"vim:{MICRO}")
    assert code == 1
    faults = " ".join(report["certificate"]["faults"])
    assert "not those of the reference" in faults or "NaN or infinite" in faults


def test_one_image_that_overflows_is_named(certify: Run, tmp_path: Path) -> None:
    weights = changed(tmp_path, overflow_of_white)
    code, report = certify(weights)
    (fault,) = report["certificate"]["faults"]
    assert code == 1
    assert fault.startswith("1 of 48 images give NaN or infinite values in float16")
    assert "#31" in fault
    assert report["errors"]["mean"]["worst"] is None
    assert report["errors"]["mean"]["row"] == 31
    patches = next(one for one in report["ranges"] if one["stage"] == "patch_embed.proj")
    assert patches["share"] > 1
    assert "#31" in patches["image"]
    assert all(one["kept"] <= 47 / 48 for one in report["certificate"]["kept"])
    assert certify(weights, dtype="bfloat16")[0] == 0


def test_swapped_directions_are_found_beside_the_original(certify: Run, tmp_path: Path) -> None:
    weights = changed(tmp_path, swap_directions)
    code, report = certify(weights, "--against", f"vim:{MICRO}")
    assert code == 1
    assert "times what rounding to float16 makes" in report["certificate"]["faults"][0]
    assert report["certificate"]["kept"][0]["kept"] < 0.9


def test_a_token_of_high_norm_is_placed(certify: Run, tmp_path: Path) -> None:
    def plant(state: State) -> None:
        state["pos_embed"][0, 9] *= 2000  # after the class token at 8: patch 8, in row 2 of 4

    _, report = certify(changed(tmp_path, plant))
    found = report["high_norm_tokens"]
    assert (found["count"], found["images"]) == (48, 48)
    assert found["places"] == [["patch 2,0", 48]]
    assert found["grid"][2] == [48, 0, 0, 0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "give --images PATH, or --sample"),
        (("--sample", "--images", "x.npy"), "give --images PATH, or --sample"),
        (("--sample", "--stack"), "--stack: --sample has no use"),
        (("--sample", "--dtype", "auto"), "certify one dtype"),
        (("--sample", "--model", "b"), "one model at a time"),
        (("--images", "nowhere.npy"), "nowhere.npy"),
    ],
)
def test_wrong_usage(flags: tuple[str, ...], message: str) -> None:
    result = CliRunner().invoke(main, ["certify", "--model", f"m=vim:{MICRO}", *flags])
    assert result.exit_code != 0
    assert message in result.output


@pytest.mark.parametrize(
    ("output", "there", "message"),
    [
        ("found.md", None, "does not end in .json"),
        ("nowhere/found.json", None, "there is no folder"),
        ("found.json", "found.md", "found.md is there and was not written by"),
        ("found.json", "found.json", "found.json is there and was not written by"),
        ("found.json", "found.md/", "found.md is a folder"),
    ],
)
def test_an_output_that_may_not_be(
    tmp_path: Path, output: str, there: str | None, message: str
) -> None:
    """Before any work: the images are not looked at. What is there stays."""
    notes = tmp_path / (there or "notes")
    if str(there).endswith("/"):
        notes.mkdir()
    else:
        notes.write_text('{"certificate": "of another kind"}')
    arguments = ["certify", "--model", f"m=vim:{MICRO}", "--images", "nowhere.npy"]
    result = CliRunner().invoke(
        main, [*arguments, "--dtype", "float16", "-o", str(tmp_path / output)]
    )
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert notes.is_dir() or notes.read_text() == '{"certificate": "of another kind"}'


def test_a_certificate_is_replaced_by_the_next(certify: Run) -> None:
    for _ in range(2):
        assert certify(MICRO)[0] == 0


def test_too_few_images(tmp_path: Path) -> None:
    np.save(tmp_path / "few.npy", np.zeros((12, 3, 64, 64), np.uint8))
    arguments = ["certify", "--model", f"m=vim:{MICRO}", "--images", str(tmp_path / "few.npy")]
    result = CliRunner().invoke(main, [*arguments, "--device", "cpu"])
    assert result.exit_code == 1
    assert "12 images are too few" in result.output


def test_rows_that_are_not_finite_keep_nothing() -> None:
    z = np.random.default_rng(1).normal(size=(60, 5)).astype(np.float32)
    broken = z.copy()
    broken[:15] = np.nan
    assert agreement("mean", z, z).kept.kept == 1.0
    assert agreement("mean", z, broken).kept.kept == pytest.approx(0.75)
    broken[:] = np.nan
    assert agreement("mean", z, broken).kept.kept == 0.0


def test_no_loss_seen_is_not_none_at_all() -> None:
    low, high = interval(1.0, 0.0, 100, 10)
    assert high == 1.0
    assert low == pytest.approx(1 - 2 * 3.689 / 1000, abs=1e-4)  # Poisson: 3.689 at 97.5 %
    assert interval(0.9, 0.02, 100, 10) == pytest.approx((0.9 - 0.0392, 0.9392))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is no certificate"),
        ("{}", "no certificate of this version"),
        ('{"format": "vim-embed certificate of precision, 1"}', "damaged"),
    ],
)
def test_files_that_are_no_certificates(text: str, message: str) -> None:
    with pytest.raises(CertificateError, match=message):
        parse_certificate(text, "x.json")
