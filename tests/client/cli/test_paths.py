"""A path that leads to nothing is told in one way by every command, with exit code 2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from client.bulk.skies import around, catalogue, tangent, write
from support.embedding_files import write_embeddings
from vim_embed_client.cli.main import run
from vim_embed_client.results import Provenance

CUT = "--catalogue cat.fits --size 3arcsec"
# {P}: what is not there. A command may name it otherwise where it is FILE:COLUMN and the like.
READ = {
    "embed": "embed {P} -o o.npy",
    "embed, a catalogue": "embed tile.fits --catalogue {P} --size 3arcsec -o o.npy",
    "embed, a mosaic": "embed {P} " + CUT + " -o o.npy",
    "embed, a mask of mosaics": "embed tile.fits " + CUT + " --mask {P} -o o.npy",
    "embed, a weight": "embed tile.fits --weight {P} -o o.npy",
    "preview": "preview {P} -o o.png",
    "preview, a catalogue": "preview tile.fits --catalogue {P} --size 3arcsec -o o.png",
    "preview, a mosaic": "preview {P} " + CUT + " -o o.png",
    "preview, a mask": "preview tile.fits --mask {P} -o o.png",
    "cutout, a catalogue": "cutout tile.fits --catalogue {P} --size 3arcsec -o o.h5",
    "cutout, a mosaic": "cutout {P} " + CUT + " -o o.h5",
    "cutout, a mask": "cutout tile.fits " + CUT + " --mask {P} -o o.h5",
    "score": "score a.parquet {P}",
    "score, a table": "score a.parquet b.parquet --property {P}:z",
    "score, pairs": "score a.parquet b.parquet --pairs {P}",
    "score, a style": "score a.parquet b.parquet --figure o.png --style {P}",
    "table": "table m:x=a.parquet m:y={P}",
    "layers": "layers {P} b.parquet",
    "compare": "compare m=a.parquet,{P} n=a.parquet,b.parquet",
    "map": "map {P} -o o.png",
    "map, a table": "map a.parquet -o o.png --colour {P}:z",
    "neighbours": "neighbours {P} -o o.png",
    "neighbours, images": "neighbours a.parquet -o o.png --images {P}",
    "join": "join a.parquet {P} -o o.parquet",
    "attach": "attach {P}",
    "attach, a Python": "attach --python {P}",
    "explain": "explain --model vim-micro {P} -o o.png",
}
WRITTEN = {
    "embed": "embed x.npy -o {P}/o.npy",
    "preview": "preview x.npy -o {P}/o.png",
    "cutout, a file": "cutout tile.fits " + CUT + " -o {P}/o.h5",
    "cutout, a folder": "cutout tile.fits " + CUT + " -o {P}/o",
    "score": "score a.parquet b.parquet --figure {P}/o.png",
    "table": "table m:x=a.parquet m:y=b.parquet -o {P}/o.csv",
    "layers": "layers a.parquet b.parquet -o {P}/o.csv",
    "compare": "compare m=a.parquet,b.parquet n=a.parquet,b.parquet -o {P}/o.md",
    "map": "map a.parquet -o {P}/o.png",
    "neighbours": "neighbours a.parquet -o {P}/o.png",
    "join": "join a.parquet b.parquet --modes x,y -o {P}/o.parquet",
    "explain": "explain --model vim-micro --sample -o {P}/o.png",
    "explain, arrays": "explain --model vim-micro --sample --arrays {P}/o.npz",
}


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        rows = rng.normal(size=(40, 4)).astype("f4")
        ids = [str(row) for row in range(40)]
        write_embeddings(Path(f"{name}.parquet"), rows, ids, Provenance(model="m"))
    pyarrow.parquet.write_table(pa.table({"id": ids, "z": list(range(40))}), "z.parquet")
    np.save("x.npy", rng.integers(0, 256, (3, 8, 8), dtype=np.uint8))
    wcs = tangent(150, 2, 0.2, (60, 60))
    write(Path("tile.fits"), rng.normal(size=(60, 60)).astype("f4"), wcs)
    catalogue(Path("cat.fits"), around(150, 2, 2, 4))
    monkeypatch.setenv("VIM_EMBED_URL", url)


def _told(command: str, capsys: Any) -> str:
    assert run(command.split()) == 2, command
    return str(capsys.readouterr().err)


@pytest.mark.usefixtures("there")
@pytest.mark.parametrize("path", ["absent.parquet", "nowhere/absent.parquet"])
@pytest.mark.parametrize("case", READ)
def test_what_is_read(case: str, path: str, capsys: Any) -> None:
    path = path.replace("parquet", "fits") if "mask" in case or "weight" in case else path
    told = _told(READ[case].format(P=path), capsys)
    assert told.startswith(f"Error: {path} is not there")
    assert ("there is no folder nowhere" in told) == ("/" in path)


@pytest.mark.usefixtures("there")
@pytest.mark.parametrize("case", WRITTEN)
def test_what_is_written(case: str, capsys: Any) -> None:
    told = _told(WRITTEN[case].format(P="nowhere"), capsys)
    assert told.startswith("Error: nowhere/o")
    assert "cannot be written: there is no folder nowhere: make it first" in " ".join(told.split())


@pytest.mark.usefixtures("there")
def test_the_nearest_name_and_patterns(capsys: Any) -> None:
    assert "Error: cta.fits is not there: did you mean cat.fits?" in _told(
        "cutout tile.fits --catalogue cta.fits --size 3arcsec -o o.h5", capsys
    )
    assert _told("embed q*.png -o o.npy", capsys) == "Error: nothing fits the pattern q*.png\n"
