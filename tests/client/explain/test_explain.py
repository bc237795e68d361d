"""`vim-embed explain`: the arrays, the sheet and what cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from support.fixtures_vim import DATA
from vim_embed_client.cli.main import run
from vim_embed_client.explain.figure import attention_sheet, chosen, shares
from vim_embed_client.explain.local import Explanation

MODEL = f"micro=vim:{DATA / 'vim_micro.pth'}"


@pytest.fixture
def images(tmp_path: Path) -> str:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "images.npy", rng.integers(0, 256, (5, 3, 64, 64), dtype=np.uint8))
    return str(tmp_path / "images.npy")


def explanation(token: int = 2) -> Explanation:
    """A 2×2 grid with the class token in the middle; the last patch is looked at most."""
    attention = np.ones((1, 3, 5), np.float32)
    attention[0, 2, 4] = 16
    return Explanation(
        model="m",
        weights="sha256:00",
        random_weights=True,
        ids=["a"],
        pixels=[np.zeros((3, 8, 8), np.uint8)],
        attention=attention,
        norms=np.arange(15, dtype=np.float32).reshape(1, 3, 5),
        grid=(2, 2),
        patches=(0, 1, 3, 4),
        token=token,
        token_name="class token",
    )


def test_a_sheet_and_arrays_of_real_images(
    images: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet, arrays = tmp_path / "sheet.png", tmp_path / "found.npz"
    flags = ["--model", MODEL, "-o", str(sheet), "--arrays", str(arrays), "--rows", "3", "--json"]
    assert run(["explain", images, *flags]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["images"], told["blocks"], told["token"]) == (3, 4, 8)
    with np.load(arrays) as found:
        assert found["attention"].shape == found["norms"].shape == (3, 4, 17)
        assert [name[-2:] for name in found["ids"]] == ["#0", "#2", "#4"]
        assert found["grid"].tolist() == [4, 4]
    with Image.open(sheet) as picture:
        assert picture.width > 900


def panels(figure: Figure) -> list[np.ndarray[tuple[int, ...], np.dtype[np.float64]]]:
    return [np.asarray(axes.images[-1].get_array()) for axes in figure.axes]


def test_panels_show_the_patches_of_the_grid() -> None:
    figure = attention_sheet(explanation(), 2)
    _, looked, sizes = panels(figure)
    assert looked.tolist() == [[pytest.approx(0.05)] * 2, [pytest.approx(0.05), pytest.approx(0.8)]]
    assert sizes.tolist() == [[10, 11], [13, 14]]
    words = " ".join(text.get_text() for text in figure.texts)
    assert "RANDOM WEIGHTS" in words
    assert "itself 5.0%, most of a patch 80.0%" in words
    assert "10 to 14, median 12" in words


def test_the_mean_over_blocks_is_of_shares() -> None:
    attention = shares(explanation().attention)
    assert attention.sum(axis=-1) == pytest.approx(1)
    assert chosen(attention[0], None)[4] == pytest.approx((0.2 + 0.2 + 0.8) / 3)


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["-o", "x.png"], 2, "give SOURCES, or --sample"),
        (["--sample"], 2, "give -o FILE for a sheet"),
        (["IMAGES", "-o", "x.png", "--block", "9"], 1, "has blocks 0 to 3"),
        (["IMAGES", "-o", "x.png", "--block", "last"], 2, "neither mean nor a number"),
        (["IMAGES", "-o", "x.png", "--patch", "4,0"], 1, "outside the 4×4 patches"),
        (["IMAGES", "-o", "x.gif"], 2, "does not end in one of"),
        (["none.npy", "-o", "x.png"], 2, "none.npy is not there"),
    ],
)
def test_what_cannot_be(
    flags: list[str],
    code: int,
    message: str,
    images: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [images if flag == "IMAGES" else flag for flag in flags]
    assert run(["explain", *given, "--model", MODEL]) == code
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "x.png").exists()
