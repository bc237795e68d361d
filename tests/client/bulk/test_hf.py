"""Hugging Face data sets: saved to disk, folders of data files, streamed; no network."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from vim_embed_client.bulk.sender import resized
from vim_embed_client.bulk.sources.registry import ReadOptions, open_reader
from vim_embed_client.cli.main import run
from vim_embed_pixels.stretch import to_rgb
from vim_embed_pixels.surveys import SURVEYS

from .conftest import Embed
from .row_files import PIXELS, PNGS
from .survey import SIZE, Array, expected, galaxy, pictures, png, write_images, write_parquet

ROWS = 50


def write_configurations(folder: Path, configurations: dict[str, Array]) -> None:
    """A data set with several configurations, as the Hub has them."""
    folder.mkdir()
    listed = []
    for name, pixels in configurations.items():
        write_parquet(folder / name, pixels)
        listed.append(f"- config_name: {name}\n  data_files: {name}.parquet\n")
    (folder / "README.md").write_text(f"---\nconfigs:\n{''.join(listed)}---\n")


@pytest.fixture
def pixels() -> Array:
    return pictures(ROWS)


@pytest.fixture
def data(pixels: Array) -> Any:
    """Images, labels and names, as a data set of the Hub has them."""
    images = [Image.fromarray(one.transpose(1, 2, 0)) for one in pixels]
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.Value("int64"),
            "name": datasets.Value("string"),
        }
    )
    columns = {
        "image": images,
        "label": list(range(ROWS)),
        "name": [f"galaxy-{row}" for row in range(ROWS)],
    }
    return datasets.Dataset.from_dict(columns, features=features)


def test_saved_to_disk(embed: Embed, tmp_path: Path, data: Any, pixels: Array) -> None:
    data.save_to_disk(tmp_path / "set")
    source = f"hf:{tmp_path}/set"
    ids, rows = embed(source)
    assert ids == [f"{source}:train#{row}" for row in range(ROWS)]
    np.testing.assert_array_equal(rows, expected(pixels))
    ids, rows = embed(source, "--id-column", "name")
    assert ids == [f"galaxy-{row}" for row in range(ROWS)]
    np.testing.assert_array_equal(rows, expected(pixels))


@pytest.mark.parametrize("split", [False, True])
def test_a_saved_set_that_is_given_as_a_folder(
    embed: Embed, tmp_path: Path, data: Any, split: bool, capsys: Any
) -> None:
    saved = datasets.DatasetDict({"train": data}) if split else data
    saved.save_to_disk(tmp_path / "set")
    embed(tmp_path / "set", code=2)
    assert f"a data set that save_to_disk wrote: give hf:{tmp_path}/set" in capsys.readouterr().err


def test_splits_and_columns_of_a_saved_dictionary(
    embed: Embed, tmp_path: Path, data: Any, pixels: Array
) -> None:
    both = {"train": data.select(range(10)), "test": data.select(range(10, 13))}
    datasets.DatasetDict(both).save_to_disk(tmp_path / "set")
    source = f"hf:{tmp_path}/set"
    assert len(embed(source)[0]) == 10
    ids, rows = embed(f"{source}:test:image")
    assert ids == [f"{source}:test#{row}" for row in range(3)]
    np.testing.assert_array_equal(rows, expected(pixels[10:13]))
    embed(f"{source}:validation", code=1)
    embed(f"{source}:test:picture", code=1)


@pytest.mark.parametrize("start", [0, 1, 17, 49, 50])
@pytest.mark.parametrize("saved", [True, False])
def test_reading_goes_on_in_the_middle(
    tmp_path: Path, data: Any, pixels: Array, start: int, saved: bool
) -> None:
    if saved:
        data.save_to_disk(tmp_path / "set")
    else:
        (tmp_path / "set").mkdir()
        write_parquet(tmp_path / "set" / "train", pixels)
    reader = open_reader(f"hf:{tmp_path}/set", ReadOptions(column="image"))
    whole = list(reader.read(0))
    assert len(whole) == ROWS
    assert list(reader.read(start)) == whole[start:]


def test_a_folder_of_parquet_is_streamed(embed: Embed, tmp_path: Path, pixels: Array) -> None:
    (tmp_path / "set").mkdir()
    for number in range(2):
        half = pixels[number * 25 : number * 25 + 25]
        write_parquet(tmp_path / "set" / f"train-{number}-of-2", half)
    source = f"hf:{tmp_path}/set:train"
    ids, rows = embed(source)
    assert ids == [f"{source}#{row}" for row in range(ROWS)]
    np.testing.assert_array_equal(rows, expected(pixels))


def test_an_image_folder_is_streamed(embed: Embed, tmp_path: Path, pixels: Array) -> None:
    write_images(tmp_path / "set", pixels)
    _, rows = embed(f"hf:{tmp_path}/set")
    np.testing.assert_array_equal(rows, expected(pixels))


def test_arrays(embed: Embed, tmp_path: Path, pixels: Array) -> None:
    features = datasets.Features({"pixels": datasets.Array3D((3, SIZE, SIZE), "uint8")})
    made = datasets.Dataset.from_dict({"pixels": pixels}, features=features)
    made.save_to_disk(tmp_path / "set")
    _, rows = embed(f"hf:{tmp_path}/set")
    np.testing.assert_array_equal(rows, expected(pixels))


def test_the_columns_that_platonic_universe_reads(embed: Embed, tmp_path: Path) -> None:
    flux = {"flux": datasets.List(datasets.List(datasets.List(datasets.Value("float32"))))}
    features = datasets.Features({"hsc_image": flux, "jwst_image": flux})
    hsc = [galaxy(5, 30, seed=seed, flux=0.5) for seed in range(3)]
    jwst = [galaxy(7, 20, seed=seed, flux=4.0) for seed in range(3)]
    columns = {"hsc_image": [{"flux": c} for c in hsc], "jwst_image": [{"flux": c} for c in jwst]}
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(tmp_path / "set")
    spec: Any = {"image_size": SIZE, "interpolation": "bicubic"}
    for survey, cubes in (("hsc", hsc), ("jwst", jwst)):
        source = f"hf:{tmp_path}/set:train:{survey}_image"
        _, rows = embed(source, "--survey", survey)
        shown = np.stack([resized(to_rgb(cube, SURVEYS[survey]), spec) for cube in cubes])
        np.testing.assert_array_equal(rows, expected(shown))
    embed(f"hf:{tmp_path}/set", code=1)


def test_sets_that_are_not_there_are_named(
    service_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "empty").mkdir()
    out = str(tmp_path / "o.npy")
    assert run(["embed", "--url", service_url, f"hf:{tmp_path}/empty", "-o", out]) == 1
    assert f"Error: hf:{tmp_path}/empty: cannot be opened as a data set" in capsys.readouterr().err
    assert run(["embed", "--url", service_url, "hf:", "-o", out]) == 2
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert run(["embed", "--url", service_url, f"hf:{tmp_path}/empty", "-o", out]) == 2
    assert 'pip install "vim-embed[hf]"' in capsys.readouterr().err


def test_a_set_written_again_is_another_one(tmp_path: Path, data: Any) -> None:
    data.save_to_disk(tmp_path / "set")
    before = open_reader(f"hf:{tmp_path}/set", ReadOptions()).stamp()
    assert open_reader(f"hf:{tmp_path}/set", ReadOptions()).stamp() == before
    data.select(range(3)).save_to_disk(tmp_path / "set")
    assert open_reader(f"hf:{tmp_path}/set", ReadOptions()).stamp() != before


def test_a_stream_that_breaks_off_is_not_taken_for_unreadable(
    embed: Embed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, pixels: Array
) -> None:
    def rows(broken: bool) -> Any:
        for row, one in enumerate(pixels):
            if broken and row == 20:
                raise ConnectionError("the network is down")
            yield {"image": png(one)}

    def load(broken: bool) -> Any:
        features = datasets.Features({"image": datasets.Value("binary")})
        return datasets.IterableDataset.from_generator(
            rows, features=features, gen_kwargs={"broken": broken}
        )

    (tmp_path / "set").mkdir()
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: load(True))
    options = ("--on-error", "skip", "--batch-rows", 4, "--in-flight", 1)
    embed(f"hf:{tmp_path}/set", *options, code=1)
    told = capsys.readouterr().err
    assert "broke off" in told
    assert "finished rows are kept" in told
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: load(False))
    ids, found = embed(f"hf:{tmp_path}/set", *options)
    assert len(ids) == len(set(ids)) == ROWS
    np.testing.assert_array_equal(found, expected(pixels))


def test_one_of_several_configurations(
    embed: Embed, tmp_path: Path, pixels: Array, capsys: Any
) -> None:
    write_configurations(tmp_path / "set", {"wide": pixels[:20], "deep": pixels[20:]})
    source = f"hf:{tmp_path}/set"
    for name, some in (("wide", pixels[:20]), ("deep", pixels[20:])):
        ids, rows = embed(source, "--config", name)
        assert ids == [f"{source}@{name}:train#{row}" for row in range(len(some))]
        np.testing.assert_array_equal(rows, expected(some))
    embed(source, code=1)
    told = capsys.readouterr().err
    assert "['wide', 'deep']" in told
    assert "choose one with --config" in told


def test_images_in_a_zip_of_a_data_set(embed: Embed, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    with zipfile.ZipFile(tmp_path / "set" / "images.zip", "w") as archive:
        for row, data in enumerate(PNGS):
            archive.writestr(f"{row}.png", data)
    _, rows = embed(f"hf:{tmp_path}/set")
    np.testing.assert_array_equal(rows, expected(PIXELS))
