"""Fuzzes catalogues and mosaics: damaged files of every format, cut out at their positions.

`python scripts/fuzz_catalogues.py --inputs 5000` mutates sound catalogues (FITS, ECSV, VOTable,
CSV, Parquet) and sound mosaics (plain, scaled, compressed, with a mask), and cuts galaxies out. It
fails on any error that does not name the file or the option that mends it, on a run that hangs,
and on rows out of the order of the catalogue. Input number N of a seed is always the same.
"""

from __future__ import annotations

import argparse
import faulthandler
import io
import json
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from fuzz_readers import mutated

from vim_embed_client.bulk.sources.options import ReadOptions, SkyOptions
from vim_embed_client.bulk.sources.reader import Item
from vim_embed_client.bulk.sources.registry import open_reader
from vim_embed_client.errors import InputError, VimEmbedError

SIDE, ROWS = 40, 5
INPUT_S = 40  # that one input may take


def sound_files() -> dict[str, bytes]:
    """Catalogues and mosaics that fit together, by their names."""
    rng = np.random.default_rng(0)
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval = ["RA---TAN", "DEC--TAN"], (150, 2)
    wcs.wcs.crpix, wcs.wcs.cdelt = (SIDE / 2, SIDE / 2), (-0.2 / 3600, 0.2 / 3600)
    header = wcs.to_header()
    image = rng.normal(size=(SIDE, SIDE)).astype("f4")
    ra, dec = wcs.wcs_pix2world(rng.uniform(12, SIDE - 12, (ROWS, 2)), 0).T
    table = Table(
        {"id": np.arange(ROWS) + 2**60, "ra": ra, "dec": dec, "z": rng.uniform(size=ROWS)}
    )
    text = io.StringIO()
    table.write(text, format="ascii.csv")
    ecsv = io.StringIO()
    table.write(ecsv, format="ascii.ecsv")
    scaled = fits.PrimaryHDU(image, header)
    scaled.scale("int16", bscale=0.01)
    mask = fits.ImageHDU(np.zeros((SIDE, SIDE), np.int16), name="DQ")
    return {
        "cat.fits": _written(table, "fits"),
        "cat.vot": _written(table, "votable"),
        "cat.parquet": _written(table, "parquet"),
        "cat.csv": text.getvalue().encode(),
        "cat.ecsv": ecsv.getvalue().encode(),
        "tile.fits": _hdus(fits.PrimaryHDU(), fits.ImageHDU(image, header, name="SCI"), mask),
        "scaled.fits": _hdus(scaled),
        "packed.fits": _hdus(fits.PrimaryHDU(), fits.CompImageHDU(image, header)),
    }


def _written(table: Any, kind: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table"
        table.write(path, format=kind)
        return path.read_bytes()


def _hdus(*hdus: Any) -> bytes:
    buffer = io.BytesIO()
    fits.HDUList(list(hdus)).writeto(buffer)
    return buffer.getvalue()


def outcome(folder: Path, name: str, data: bytes, sound: dict[str, bytes]) -> str:
    """What became of an input: `rows`, `skipped` or `refused`. Raises AssertionError if wrong."""
    path = folder / name
    path.write_bytes(data)
    catalogue = path if "-cat." in name else folder / "cat.csv"
    image = folder / "tile.fits" if catalogue is path else path
    for one in (catalogue, image):
        if one != path:
            one.write_bytes(sound[one.name])
    mask = "DQ" if image.name.endswith("tile.fits") else None
    sky = SkyOptions(images=(str(image),), size=2.4, max_blank=1.0, mask=mask)
    try:
        entries = list(open_reader(str(catalogue), ReadOptions(sky=sky)).read(0))
    except VimEmbedError as error:
        if name.partition(".")[0] in error.message or "--" in error.message:
            return "refused"
        raise AssertionError(f"names no file: {error.message}") from error
    ids = [one.id for one in entries]
    assert ids == [f"{catalogue}#{row}" for row in range(len(ids))], "rows out of order"
    return "rows" if all(_drawn(one) for one in entries) else "skipped"


def _drawn(entry: Any) -> bool:
    """Whether a row has pixels. Raises whatever is no error of a row."""
    if not isinstance(entry, Item) or not callable(entry.data):
        return False
    try:
        return bool(entry.data().dtype == np.uint8)
    except InputError:
        return False


def fuzz(*, inputs: int, seed: int = 0, first: int = 0) -> tuple[Counter[str], list[str]]:
    """How many inputs had which outcome, and those that were a fault."""
    sound = sound_files()
    counts: Counter[str] = Counter()
    faults: list[str] = []
    for number in range(first, first + inputs):
        name, data = mutated(number, seed, sound)
        faulthandler.dump_traceback_later(INPUT_S, exit=True)
        with tempfile.TemporaryDirectory() as folder:
            try:
                counts[outcome(Path(folder), name, data, sound)] += 1
            except BaseException:
                faults.append(f"{name}: {traceback.format_exc()}")
        faulthandler.cancel_dump_traceback_later()
    return counts, faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    given = parser.parse_args()
    counts, faults = fuzz(inputs=given.inputs, seed=given.seed, first=given.first)
    print(json.dumps({"outcomes": dict(counts), "faults": faults}, indent=1))
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
