"""Whatever file it is, `vim-embed embed` and the Ray job give the same rows, ids and skips."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from PIL import Image

from support.cluster_parts import arithmetic
from support.serving import running
from vim_embed.engines.arithmetic import ArithmeticEngine
from vim_embed.http.app import create_app
from vim_embed.settings import Settings
from vim_embed.types.model_info import EmbedOptions
from vim_embed_client.cli.common import SOME_LEFT_OUT
from vim_embed_client.cli.main import run as client_cli

pytest.importorskip("ray", reason='needs the extra: pip install "vim-embed[ray]"')
pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.usefixtures("ray_node"),
]

SETTINGS = Settings(models=("arithmetic=unused",))
RNG = np.random.default_rng(5)
PIXELS = RNG.integers(0, 256, (11, 3, 8, 8), dtype=np.uint8)
FLOATS = RNG.standard_normal((6, 3, 8, 8)).astype("f4")


def png(pixels: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def _images(folder: Path) -> None:
    for row in range(9):
        (folder / f"{row}.png").write_bytes(png(PIXELS[row]))
    (folder / "4.ppm").write_bytes(b"P6 8 8 255\n" + PIXELS[4].transpose(1, 2, 0).tobytes())
    (folder / "bad.png").write_bytes(b"no image")


def _arrays(folder: Path) -> None:
    np.save(folder / "many.npy", PIXELS)
    np.save(folder / "one.npy", PIXELS[3])
    np.save(folder / "last.npy", PIXELS.transpose(0, 2, 3, 1))
    np.save(folder / "floats.npy", FLOATS)
    np.save(folder / "doubles.npy", FLOATS.astype(">f8"))
    np.save(folder / "unscaled.npy", RNG.random((5, 3, 8, 8)).astype("f4"))
    np.savez_compressed(folder / "some.npz", images=PIXELS, labels=np.arange(11))
    holes = FLOATS.copy()
    holes[2, 0, 0, 0] = np.nan
    np.save(folder / "holes.npy", holes)
    (folder / "bad.npy").write_bytes(b"no array")


def _shards(folder: Path) -> None:
    for name, mode in (("a.tar", "w"), ("b.tar.gz", "w:gz")):
        with tarfile.open(folder / name, mode) as archive:  # type: ignore[call-overload]
            for row, pixels in enumerate(PIXELS):
                for member, data in ((f"{row}.png", png(pixels)), (f"{row}.cls", b"7")):
                    info = tarfile.TarInfo(member)
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
    whole = (folder / "a.tar").read_bytes()
    (folder / "cut.tar").write_bytes(whole[: len(whole) // 2])


def _tables(folder: Path) -> None:
    encoded = [png(one) for one in PIXELS]
    encoded[6] = None  # type: ignore[call-overload]
    nested = pa.array(PIXELS.astype("i4").tolist())
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(PIXELS)
    for name, column in (("encoded", encoded), ("nested", nested), ("tensors", tensors)):
        pq.write_table(pa.table({"x": column}), folder / f"{name}.parquet", row_group_size=3)
    whole = (folder / "tensors.parquet").read_bytes()
    broken = whole[:600] + bytes(400) + whole[1000:]
    (folder / "broken.parquet").write_bytes(broken)


def _fits(folder: Path) -> None:
    for row in range(3):
        sky = RNG.random((20, 20)).astype("f4")
        fits.PrimaryHDU(sky).writeto(folder / f"{row}.fits")
    mask = fits.ImageHDU(np.ones((20, 20), "i2"), name="MASK")
    science = fits.ImageHDU(RNG.random((20, 20)).astype("f4"), name="SCI")
    fits.HDUList([fits.PrimaryHDU(), mask, science]).writeto(folder / "both.fits")
    sky[4, 4] = np.nan
    fits.PrimaryHDU(sky).writeto(folder / "hole.fits")


def _others(folder: Path) -> None:
    np.save(folder / "again.npy", PIXELS)
    for name in ("notes.txt", "labels.csv", ".hidden.png"):
        (folder / name).touch()


KINDS = {
    "arrays": _arrays,
    "fits": _fits,
    "images": _images,
    "others": _others,
    "shards": _shards,
    "tables": _tables,
}


@dataclass(frozen=True)
class Written:
    """A table of embeddings, and what its metadata says."""

    table: Any
    about: dict[str, Any]


def read(path: Path) -> Written:
    table = pq.read_table(path)
    about = {
        name: json.loads(table.schema.metadata[f"vim_embed.{name}".encode()])
        for name in ("provenance", "skipped", "summary", "options")
    }
    return Written(table, about)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files of every kind."""
    folder = tmp_path_factory.mktemp("contract") / "in"
    for name, make in KINDS.items():
        (folder / name).mkdir(parents=True)
        make(folder / name)
    return folder


@pytest.fixture(scope="module")
def ways(ray_node: None, folder: Path) -> tuple[Written, Written]:
    """What the Ray job and the command wrote."""
    from vim_embed.cluster.bulk import Job, embed_sources
    from vim_embed.cluster.settings import ClusterSettings

    ours, theirs = folder.with_name("ray.parquet"), folder.with_name("http.parquet")
    job = Job(settings=SETTINGS, options=EmbedOptions(), on_error="skip")
    cluster = ClusterSettings(cpus=1, max_replicas=2, min_replicas=2)
    embed_sources([str(folder)], ours, job, cluster, part_rows=4, make_engines=arithmetic)
    with running(create_app(SETTINGS, ArithmeticEngine())) as url:
        args = ["embed", str(folder), "-o", str(theirs), "--url", url, "--on-error", "skip"]
        assert client_cli(args) == SOME_LEFT_OUT
    return read(ours), read(theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_ids_and_skips_of_every_kind_of_file_are_the_same(
    ways: tuple[Written, Written], folder: Path, kind: str
) -> None:
    mine, its = (_of(written, f"{folder / kind}/") for written in ways)
    assert mine == its
    ids, _, skipped = mine
    assert ids
    assert bool(skipped) == (kind != "others")


def _of(written: Written, start: str) -> tuple[list[str], list[Any], list[dict[str, str]]]:
    ids = written.table["id"].to_pylist()
    rows = written.table["embedding"].to_pylist()
    mine = [row for row, row_id in enumerate(ids) if row_id.startswith(start)]
    skipped = [one for one in written.about["skipped"] if one["id"].startswith(start)]
    return [ids[row] for row in mine], [rows[row] for row in mine], skipped


def test_the_tables_are_the_same(ways: tuple[Written, Written]) -> None:
    mine, its = ways
    assert mine.table.equals(its.table)
    assert mine.table.schema.equals(its.table.schema)
    assert mine.about["provenance"] == its.about["provenance"]
    assert mine.about["summary"] == its.about["summary"]
    # The job names the model and whether it is exact, which the command leaves to the service.
    named = {"model": "arithmetic", "exact": False}
    assert mine.about["options"] == its.about["options"] | named
