"""docs/bulk.md: every command in it runs, and its table of exit codes is the code's."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import datasets
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from astropy.io import fits

from vim_embed_client.bulk.sources.options import SKY_OPTIONS
from vim_embed_client.cli.embed import embed as embed_command
from vim_embed_client.cli.main import EXIT_CODES, run
from vim_embed_client.cli.preview import preview as preview_command
from vim_embed_client.options import DEFAULT_URL
from vim_embed_client.scoring.embedding_files import read_embeddings

from .survey import SIZE, Array, galaxy, pictures, png, write_images
from .test_hf import write_configurations
from .test_sources import tar

DOCS = (Path(__file__).parents[3] / "docs" / "bulk.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", DOCS, re.DOTALL)
    for line in block.strip().splitlines()
]


def _tables(pixels: Array) -> None:
    names = [f"{row}" for row in range(len(pixels))]
    images = [png(one) for one in pixels]
    table = pa.table({"image": images, "object_id": names})
    pyarrow.parquet.write_table(table, "galaxies.parquet")
    pyarrow.parquet.write_table(pa.table({"pixels": [p.ravel() for p in pixels]}), "flat.parquet")
    datasets.Dataset.from_dict({"image": images, "object_id": names}).save_to_disk("galaxy_set")
    cubes = {"jwst_image": (7, 4.0), "hsc_image": (5, 0.5)}
    fluxes = {
        name: [{"flux": galaxy(bands, 20, seed=seed, flux=flux)} for seed in range(3)]
        for name, (bands, flux) in cubes.items()
    }
    datasets.Dataset.from_dict(fluxes).save_to_disk("jwst_hsc")


def _images_in_tables(pixels: Array) -> None:
    with h5py.File("Galaxy10.h5", "w") as file:
        file["images"] = pixels.transpose(0, 2, 3, 1)
        for name in ("ra", "dec", "ans"):
            file[name] = np.arange(len(pixels))
    with h5py.File("universe.hdf5", "w") as file:
        file["image_array"] = np.stack([galaxy(5, seed=seed) for seed in range(3)]).astype("f4")
        file["image_band"] = [[b"HSC-G", b"HSC-R", b"HSC-I", b"HSC-Z", b"HSC-Y"]] * 3
        file["object_id"] = np.arange(3)
    flat = pixels.reshape(len(pixels), -1)
    stamps = fits.Column("STAMP", f"{flat.shape[1]}B", array=flat, dim=f"({SIZE},{SIZE},3)")
    ids = fits.Column("ID", "J", array=np.arange(len(pixels)))
    fits.BinTableHDU.from_columns([stamps, ids]).writeto("stamps.fits")


@pytest.fixture
def place(tmp_path: Path, service_url: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with everything that the page speaks of."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VIM_EMBED_URL", service_url)
    pixels = pictures(4)
    write_images(tmp_path / "survey", pixels)
    write_images(tmp_path / "more", pictures(2, seed=1))
    write_images(tmp_path / "galaxies", pictures(1).repeat(40, axis=2).repeat(30, axis=3))
    np.save("cutouts.npy", pixels)
    np.savez("cutouts.npz", images=pixels)
    Path("shards").mkdir()
    tar(
        tmp_path / "shards" / "a.tar", {"1.left.png": png(pixels[0]), "1.right.png": png(pixels[2])}
    )
    tar(tmp_path / "shards" / "b.tar", {"2.left.png": png(pixels[1])})
    _tables(pixels)
    Path("fits").mkdir()
    fits.HDUList([fits.PrimaryHDU(galaxy(5))]).writeto("fits/a.fits")
    calibrated = fits.PrimaryHDU(100 * galaxy(1)[0])
    calibrated.header["BUNIT"] = "nJy"
    calibrated.writeto("calibrated.fits")
    named = [fits.ImageHDU(galaxy(1, seed=i)[0], name=name) for i, name in enumerate("GRZ")]
    fits.HDUList([fits.PrimaryHDU(), *named]).writeto("bands.fits")
    Path("decam").mkdir()
    for band in "grz":
        fits.PrimaryHDU(galaxy(1)[0]).writeto(f"decam/ngc1-{band}.fits")
    Path("stamps").mkdir()
    flags = np.zeros(galaxy(1)[0].shape, np.int16)
    stamp = fits.PrimaryHDU(galaxy(1)[0], fits.Header([("OBJECT", "NGC 1")]))
    fits.HDUList([stamp, fits.ImageHDU(flags, name="DQ")]).writeto("stamps/ngc1.fits")
    fits.PrimaryHDU(flags).writeto("stamps/ngc1_mask.fits")
    np.save("fluxes.npy", np.stack([galaxy(5, seed=seed) for seed in range(2)]))
    np.save("stamps.npy", galaxy(4))
    _images_in_tables(pixels)
    write_configurations(tmp_path / "two_surveys", {"wide": pixels[:1], "deep": pixels[1:]})
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run(place: Path, service_url: str, command: str, capsys: Any) -> None:
    words = shlex.split(command.replace(DEFAULT_URL, service_url))
    assert words[0] == "vim-embed"
    assert run(words[1:]) == 0, capsys.readouterr().err
    if words[1] == "preview":
        assert Path("sheet.png").stat().st_size > 1000
        return
    layer = ":last_hidden_state" if "--layers" in words else ""
    found = read_embeddings(words[words.index("-o") + 1] + layer)
    assert len(found.embeddings) == len(found.ids or []) > 0
    assert found.embeddings.shape[1] == SIZE


def test_the_python_runs(place: Path) -> None:
    assert run(["embed", "survey", "-o", "embeddings.parquet"]) == 0
    (code,) = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["embeddings"].shape == (4, 8)
    assert names["provenance"]["model"] == "arithmetic"


def test_exit_codes_are_the_command_line_s() -> None:
    documented = re.findall(r"^\| (\d+) \|", DOCS, re.MULTILINE)
    assert [int(code) for code in documented] == list(EXIT_CODES)


def test_every_option_named_exists_and_every_reading_option_is_named() -> None:
    known, of_preview = (
        {name for param in command.params for name in param.opts + param.secondary_opts}
        for command in (embed_command, preview_command)
    )
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", DOCS))
    assert named <= known | of_preview
    common = {"--output", "--url", "--api-key", "--model", "--pooling", "--exact", "--no-exact"}
    common |= SKY_OPTIONS | {"--catalog", "--keep"}  # of docs/sky.md
    assert known - named - common <= {"-o", "--mean", "--std", "paths"}
