"""`vim-embed neighbours`: which images stand where, and what cannot be drawn."""

from __future__ import annotations

import io
import json
import os
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from support.serving import running
from vim_embed.engines.arithmetic import ArithmeticEngine
from vim_embed.http.app import create_app
from vim_embed.settings import Settings
from vim_embed_client.cli.main import run
from vim_embed_client.cli.neighbours import _labels
from vim_embed_client.demo.stamps import cut_stamps, find_sources, hubble_picture, stamp_boxes
from vim_embed_client.errors import InputError
from vim_embed_client.figures.images import Images, as_picture
from vim_embed_client.figures.sheet import Sheet, sheet_figure
from vim_embed_client.scoring.embedding_files import EmbeddingFile, read_embeddings
from vim_embed_client.scoring.neighbours import nearest_neighbours, neighbours_of
from vim_embed_pixels.stretch import to_rgb
from vim_embed_pixels.surveys import survey_stretch

COUNT, SIZE = 24, 32
Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def galaxies() -> Pixels:
    picture = hubble_picture()
    boxes = stamp_boxes(find_sources(picture).positions[:COUNT])
    return cut_stamps(picture, boxes, size=SIZE)


@pytest.fixture(scope="module")
def survey(galaxies: Pixels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Galaxies as PNGs and as one stack, both embedded by `vim-embed embed`."""
    folder = tmp_path_factory.mktemp("survey")
    (folder / "hst").mkdir()
    for row, pixels in enumerate(galaxies):
        Image.fromarray(pixels.transpose(1, 2, 0)).save(folder / "hst" / f"g{row:02}.png")
    np.save(folder / "stack.npy", galaxies)
    with running(create_app(Settings(), ArithmeticEngine(image_size=SIZE))) as url:
        for source, output in (("hst", "hst.parquet"), ("stack.npy", "stack-z.npy")):
            paths = [str(folder / source), "-o", str(folder / output), "--url", url, "--quiet"]
            assert run(["embed", *paths]) == 0
    return folder


def sheet(capsys: Any, *args: str | Path) -> Any:
    """Run `vim-embed neighbours --json` and give what it prints."""
    assert run(["neighbours", *map(str, args), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def words(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.texts)


def shown(figure: Figure) -> list[Pixels]:
    """The pictures of a sheet, in the order in which they were placed."""
    return [np.asarray(axes.images[0].get_array()) for axes in figure.axes]


@pytest.mark.parametrize("name", ["hst.parquet", "stack-z.npy"])
def test_images_are_found_by_the_ids_of_embed(survey: Path, galaxies: Pixels, name: str) -> None:
    images = Images(read_embeddings(str(survey / name)), None)
    for row in (0, 7, COUNT - 1):
        np.testing.assert_array_equal(images[row], galaxies[row].transpose(1, 2, 0))


def test_a_sheet_shows_the_query_and_then_its_neighbours(survey: Path, galaxies: Pixels) -> None:
    file = read_embeddings(str(survey / "hst.parquet"))
    queries = [3, 11]
    found = neighbours_of(file.embeddings, queries, 4)
    np.testing.assert_array_equal(found.indices, nearest_neighbours(file.embeddings, 4)[queries])
    drawn = Sheet(
        files=[file], images=[Images(file, None)], queries=queries, neighbours=[found],
        labels=[f"g{row}" for row in range(COUNT)],
    )  # fmt: skip
    order = [3, *found.indices[0], 11, *found.indices[1]]
    pictures = shown(sheet_figure(drawn))
    assert len(pictures) == len(order)
    for picture, row in zip(pictures, order, strict=True):
        np.testing.assert_array_equal(picture, galaxies[row].transpose(1, 2, 0))


def test_the_command_draws_and_tells(survey: Path, tmp_path: Path, capsys: Any) -> None:
    output = tmp_path / "sheet.png"
    told = sheet(capsys, survey / "hst.parquet", "-o", output, "-k", "5", "--query", "g03.png")
    assert output.read_bytes().startswith(b"\x89PNG")
    assert told["random_weights"] is False
    (query,) = told["queries"]
    assert query["row"] == 3
    assert query["id"].endswith("hst/g03.png")
    z = read_embeddings(str(survey / "hst.parquet")).embeddings
    (nearest,) = query["neighbours"]
    assert [n["row"] for n in nearest] == nearest_neighbours(z, 5)[3].tolist()
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    expected = [1 - float(unit[3] @ unit[n["row"]]) for n in nearest]
    assert [n["distance"] for n in nearest] == pytest.approx(expected, abs=1e-6)
    assert not any(n["in_both"] for n in nearest)


@pytest.mark.parametrize("ending", ["pdf", "svg"])
def test_other_formats(survey: Path, tmp_path: Path, ending: str, capsys: Any) -> None:
    output = tmp_path / f"sheet.{ending}"
    few = ["--queries", "2", "-k", "3"]
    assert run(["neighbours", str(survey / "hst.parquet"), "-o", str(output), *few]) == 0
    assert "Written: " in capsys.readouterr().out
    assert output.stat().st_size > 10_000


def test_sources_are_drawn_by_the_seed(survey: Path, tmp_path: Path, capsys: Any) -> None:
    args = (survey / "hst.parquet", "-o", tmp_path / "sheet.png", "--queries", "3", "-k", "1")
    rows = [
        [query["row"] for query in sheet(capsys, *args, "--seed", seed)["queries"]]
        for seed in ("1", "1", "2")
    ]
    assert rows[0] == rows[1] != rows[2]
    assert all(len(set(found)) == 3 for found in rows)


def two_models(survey: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The embeddings of the survey, and other ones of the same sources in another order."""
    file = read_embeddings(str(survey / "hst.parquet"))
    noise = np.random.default_rng(0).normal(scale=0.3, size=file.embeddings.shape)
    order = np.random.default_rng(1).permutation(COUNT)
    np.save(tmp_path / "other.npy", (file.embeddings * (1 + noise))[order])
    about = {"ids": [file.name(row) for row in order], "provenance": {"model": "vim-small"}}
    (tmp_path / "other.npy.json").write_text(json.dumps(about))
    return survey / "hst.parquet", tmp_path / "other.npy"


def test_two_models_one_above_the_other(survey: Path, tmp_path: Path, capsys: Any) -> None:
    files = two_models(survey, tmp_path)
    told = sheet(capsys, *files, "-o", tmp_path / "sheet.png", "-k", "5", "--queries", "3")
    agreeing = 0
    for query in told["queries"]:
        one, two = query["neighbours"]
        both = {n["id"] for n in one} & {n["id"] for n in two}
        for neighbours in (one, two):
            assert {n["id"] for n in neighbours if n["in_both"]} == both
        agreeing += len(both)
    assert 0 < agreeing < 15


def test_the_second_file_can_have_images_of_its_own(
    survey: Path, tmp_path: Path, galaxies: Pixels, capsys: Any
) -> None:
    files = two_models(survey, tmp_path)
    (tmp_path / "hsc").mkdir()
    for row, pixels in enumerate(galaxies):
        dark = (pixels // 3).transpose(1, 2, 0)
        Image.fromarray(dark).save(tmp_path / "hsc" / f"g{row:02}.png")
    output = ("-o", tmp_path / "sheet.png", "--queries", "1", "-k", "2")
    sheet(capsys, *files, *output, "--second-images", tmp_path / "hsc")
    with Image.open(tmp_path / "sheet.png") as image:
        both = np.asarray(image)
    sheet(capsys, *files, *output)
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.size == (both.shape[1], both.shape[0])
        assert np.asarray(image).mean() != both.mean()


def test_two_surveys_are_shown_by_their_own_images(
    survey: Path, tmp_path: Path, galaxies: Pixels, capsys: Any
) -> None:
    """Each file's ids say where they are; --images says it for both."""
    files = two_models(survey, tmp_path)
    dark = tmp_path / "dark"
    dark.mkdir()
    for row, pixels in enumerate(galaxies):
        Image.fromarray((pixels // 3).transpose(1, 2, 0)).save(dark / f"g{row:02}.png")
    about = json.loads((tmp_path / "other.npy.json").read_text())
    about["ids"] = [str(dark / Path(name).name) for name in about["ids"]]
    (tmp_path / "other.npy.json").write_text(json.dumps(about))
    output = tmp_path / "sheet.png"

    def drawn(*options: str | Path) -> Pixels:
        sheet(capsys, *files, "-o", output, "--queries", "1", "-k", "2", *options)
        with Image.open(output) as image:
            return np.asarray(image)

    own = drawn()
    np.testing.assert_array_equal(own, drawn("--second-images", dark))
    both = drawn("--images", dark)  # one view, whose galaxies are drawn once
    assert both.mean() != own.mean()


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((3, 8, 9), "uint8"), ((8, 9, 3), "uint8"), ((8, 9), "uint8"), ((1, 8, 9), "float32")],
)
def test_arrays_of_all_kinds_are_pictures(shape: tuple[int, ...], dtype: str) -> None:
    picture = as_picture((100 * np.random.default_rng(0).random(shape)).astype(dtype))
    assert picture.shape == (8, 9, 3)
    assert picture.dtype == np.uint8


def test_float_images_are_stretched_and_nan_is_black() -> None:
    flux = np.linspace(-1, 5, 64).reshape(8, 8)
    flux[0, 3] = np.nan
    picture = as_picture(flux)[..., 0]
    assert (picture[0, 0], picture[7, 7], picture[0, 3]) == (0, 255, 0)
    assert (np.diff(picture[1:].ravel().astype(int)) >= 0).all()
    assert (as_picture(np.full((4, 4), 7.0)) == 0).all()
    with pytest.raises(InputError, match="no image"):
        as_picture(np.ones((5, 8, 8)))


def test_a_stack_of_images_goes_by_row_past_rows_left_out(galaxies: Pixels, tmp_path: Path) -> None:
    np.save(tmp_path / "stack.npy", galaxies)
    file = EmbeddingFile(label="z.npy", embeddings=np.ones((COUNT, 2))).take([5, 9])
    images = Images(file, tmp_path / "stack.npy")
    np.testing.assert_array_equal(images[1], galaxies[9].transpose(1, 2, 0))


def test_the_small_print_says_what_was_stretched(galaxies: Pixels, tmp_path: Path) -> None:
    file = EmbeddingFile(label="z.npy", embeddings=np.random.default_rng(0).normal(size=(COUNT, 4)))
    for dtype, told in (("uint8", False), ("float32", True)):
        np.save(tmp_path / "stack.npy", galaxies.astype(dtype))
        drawn = Sheet(
            files=[file], images=[Images(file, tmp_path / "stack.npy")], queries=[1],
            neighbours=[neighbours_of(file.embeddings, [1], 2)], labels=["row"] * COUNT,
        )  # fmt: skip
        assert ("stretched from its 0.5 to 99.5 percentile" in words(sheet_figure(drawn))) is told


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["-k", "24"], 1, "-k 24 needs more than 24 sources, and there are 24: lower -k"),
        (["--query", "g3.png"], 1, "did you mean"),
        (["--query", "24"], 1, "neither an id nor a row of"),
        (["-o", "sheet.gif"], 2, "does not end in one of .png, .pdf, .svg"),
        (["--images", "/nowhere"], 2, "/nowhere is not there"),
        (["--second-images", "."], 2, "needs a second file"),
        (["--images", "EMPTY"], 1, "g03.png in EMPTY: give --images the folder"),
        (["--images", "few.npy"], 1, "few.npy has 2 images and"),
        (["--images", "flat.npy"], 1, "flat.npy has the shape (4, 4): expected (N, 3, H, W)"),
    ],
)
def test_what_cannot_be_drawn_is_explained(
    survey: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any,
    args: list[str], code: int, message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    os.mkdir("EMPTY")
    np.save("few.npy", np.zeros((2, 3, 4, 4), np.uint8))
    np.save("flat.npy", np.zeros((4, 4), np.uint8))
    query = [] if "--query" in args else ["--query", "3"]
    given = ["neighbours", str(survey / "hst.parquet"), "-o", "sheet.png", *query, *args]
    assert run(given) == code
    assert message in " ".join(capsys.readouterr().err.split())
    assert not Path("sheet.png").exists()


def test_the_second_survey_s_images_are_asked_for_by_their_own_option(
    survey: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkdir("EMPTY")
    twice = [str(survey / "hst.parquet")] * 2
    asked = ["--query", "3", "--second-images", "EMPTY", "-o", "sheet.png"]
    assert run(["neighbours", *twice, *asked]) == 1
    told = " ".join(capsys.readouterr().err.split())
    assert "g03.png in EMPTY: give --second-images the folder" in told


def test_of_a_damaged_tiff_the_error_alone_is_printed(
    survey: Path, tmp_path: Path, capfd: Any
) -> None:
    """libtiff itself would print to the terminal."""
    image = io.BytesIO()
    Image.effect_noise((SIZE, SIZE), 50).save(image, "TIFF", compression="tiff_lzw")
    whole = image.getvalue()
    (tmp_path / "g03.png").write_bytes(whole[:8] + bytes(200) + whole[208:])
    args = ["--images", str(tmp_path), "--query", "3", "-o", str(tmp_path / "sheet.png")]
    assert run(["neighbours", str(survey / "hst.parquet"), *args]) == 1
    told = capfd.readouterr().err
    assert told.startswith("Error: ")
    assert "g03.png cannot be read as an image" in " ".join(told.split())


def test_without_ids_images_must_be_given(tmp_path: Path, capsys: Any) -> None:
    np.save(tmp_path / "z.npy", np.random.default_rng(0).normal(size=(20, 4)))
    args = ["neighbours", str(tmp_path / "z.npy"), "-o", str(tmp_path / "sheet.png")]
    assert run(args) == 1
    assert "has no ids that would lead to its images: give --images" in capsys.readouterr().err


def test_without_matplotlib_the_extra_is_named(
    survey: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run(["neighbours", str(survey / "hst.parquet"), "-o", "sheet.png"]) == 2
    assert 'figures need matplotlib: pip install "vim-embed[plot]"' in capsys.readouterr().err


def test_no_word_leaves_the_sheet_or_covers_another(survey: Path) -> None:
    file = read_embeddings(str(survey / "hst.parquet"))
    long = EmbeddingFile(
        label="/data/" + "deep/" * 30 + "hst.parquet", embeddings=file.embeddings, ids=file.ids,
        provenance=dict(file.provenance) | {"random_weights": True},
    )  # fmt: skip
    images = Images(file, None)
    drawn = Sheet(
        files=[long, file], images=[images, images], queries=[0, 1],
        neighbours=[neighbours_of(file.embeddings, [0, 1], 3)] * 2,
        labels=[f"field-{row}-" + "x" * 50 for row in range(COUNT)],
    )  # fmt: skip
    figure = sheet_figure(drawn)
    FigureCanvasAgg(figure).draw()
    assert "RANDOM WEIGHTS, not a scientific result" in words(figure)
    boxes = [text.get_window_extent() for text in figure.texts]
    outside = [
        text.get_text()
        for text, box in zip(figure.texts, boxes, strict=True)
        if box.x0 < 0 or box.x1 > figure.bbox.x1 or box.y0 < 0 or box.y1 > figure.bbox.y1
    ]
    assert not outside
    clashes = [
        (figure.texts[i].get_text(), figure.texts[j].get_text())
        for i, one in enumerate(boxes)
        for j, two in enumerate(boxes[:i])
        if one.overlaps(two)
    ]
    assert not clashes


def _as_seen(folder: Path) -> dict[str, Pixels]:
    """Files of fluxes in every kind of source, and what the model sees of each row, by its id."""
    rng = np.random.default_rng(7)
    cubes = rng.normal(size=(6, 5, SIZE, SIZE)).astype(np.float32) + np.arange(SIZE)[:, None] / 4
    how = survey_stretch("hsc", percentiles=(1.0, 99.0))
    shown = [to_rgb(cube, how).transpose(1, 2, 0) for cube in cubes]
    masked = fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(cubes[0, 0] * 0 + 1, name="DQ")])
    masked.append(fits.ImageHDU(cubes[0], name="SCI"))
    masked.writeto(folder / "a.fits")
    compressed = fits.CompImageHDU(cubes[1], compression_type="GZIP_2", quantize_level=0)
    fits.HDUList([fits.PrimaryHDU(), compressed]).writeto(folder / "b.fits.fz")
    fits.PrimaryHDU(cubes[2:4]).writeto(folder / "c.fits.gz")
    np.save(folder / "d.npy", cubes[4:5])
    with tarfile.open(folder / "e.tar", "w") as archive:
        fits.PrimaryHDU(cubes[5]).writeto(folder / "member")
        archive.add(folder / "member", "x/f.fits")
    (folder / "member").unlink()
    upright = [picture[::-1] for picture in shown]
    return {
        "a.fits": upright[0], "b.fits.fz": upright[1], "c.fits.gz#0": upright[2],
        "c.fits.gz#1": upright[3], "d.npy#0": shown[4], "e.tar/x/f.fits": upright[5],
    }  # fmt: skip


@pytest.mark.parametrize("ending", [".npy", ".parquet", ".safetensors"])
def test_rows_are_drawn_as_the_model_saw_them(tmp_path: Path, capsys: Any, ending: str) -> None:
    source = tmp_path / "in"
    source.mkdir()
    seen = _as_seen(source)
    output = tmp_path / f"z{ending}"
    options = ["--survey", "hsc", "--percentiles", "1,99", "--quiet"]
    with running(create_app(Settings(), ArithmeticEngine(image_size=SIZE))) as url:
        assert run(["embed", str(source), "-o", str(output), "--url", url, *options]) == 0
    file = read_embeddings(str(output))
    assert file.ids == [f"{source}/{name}" for name in seen]
    for images in (Images(file, None), Images(file, source)):
        for row, picture in enumerate(seen.values()):
            np.testing.assert_array_equal(images[row], picture)
        assert not images.stretched
    np.testing.assert_array_equal(Images(file, source / "c.fits.gz")[3], seen["c.fits.gz#1"])
    sheet(capsys, output, "-o", tmp_path / "sheet.png", "-k", "2", "--queries", "2")


def test_rows_of_one_file_keep_its_name(tmp_path: Path) -> None:
    ids = [f"{tmp_path}/stack.fits#{row}" for row in range(3)]
    assert _labels(ids) == [f"stack.fits#{row}" for row in range(3)]
    assert _labels([f"{tmp_path}/a/1.png", f"{tmp_path}/b/1.png"]) == ["a/1.png", "b/1.png"]
