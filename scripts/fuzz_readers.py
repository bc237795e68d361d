"""Fuzzes the readers of `vim-embed embed`: damaged files of every format, with --on-error skip.

`python scripts/fuzz_readers.py --inputs 20000` mutates sound FITS, HDF5, Parquet, tar, npz, npy,
PNG and TIFF files, embeds them a folder at a time through a real service, and fails on a
traceback, a run that hangs, memory beyond a bound, and a file that is neither a row nor named as
left out. Input number N of a seed is always the same, so `--seed S --first N --inputs 1` repeats a
finding.
"""

from __future__ import annotations

import argparse
import faulthandler
import gzip
import io
import json
import random
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet
from astropy.io import fits
from PIL import Image

from vim_embed_client.bulk.outputs import sidecar
from vim_embed_client.bulk.sources.options import ReadOptions
from vim_embed_client.bulk.sources.registry import open_reader
from vim_embed_client.cli.main import run

MIB = 1 << 20
BATCH = 200  # files of one run
BATCH_S = 40  # that one run may take
MEMORY = 512 * MIB  # that the command may gain over what it takes for sound files
ADDRESSES = 16 * 1024 * MIB  # beyond them an allocation fails, and is named as a skip
SERVER = Path(__file__).parents[1] / "tests" / "client" / "bulk" / "stub_server.py"
_SIDE = 8


def sound_files() -> dict[str, bytes]:
    """A small sound file of each kind, by its ending."""
    rng = np.random.default_rng(0)
    flux = rng.normal(size=(12, 12)).astype(np.float32)
    pixels = rng.integers(0, 256, (2, 3, _SIDE, _SIDE), dtype=np.uint8)
    encoded = {kind: _image(pixels[0], kind) for kind in ("png", "tiff")}
    table = {"id": ["a", "b"], "image": [{"bytes": encoded["png"], "path": None}] * 2}
    lists = {"x": pixels.tolist(), "n": [1, 2]}
    scaled = fits.ImageHDU(rng.normal(size=(3, 12, 12)), name="SCI")
    scaled.scale("int16", bscale=0.01)
    scaled.header["CTYPE3"] = "RGB"
    catalogue = fits.BinTableHDU.from_columns([fits.Column("ra", "E", array=[1.0])])
    plain = _fits(fits.ImageHDU(flux, name="SCI"), fits.ImageHDU(flux, name="DQ"), catalogue)
    return {
        "image.fits": plain,
        "cube.fits": _fits(scaled),
        "rice.fits": _fits(fits.CompImageHDU(flux, compression_type="RICE_1")),
        "hcompress.fits": _fits(
            fits.CompImageHDU(flux, compression_type="HCOMPRESS_1", tile_shape=(12, 12))
        ),
        "plio.fits": _fits(fits.CompImageHDU((flux > 0).astype("i2"), compression_type="PLIO_1")),
        "dither.fits": _fits(fits.CompImageHDU(flux, quantize_method=1, dither_seed=1)),
        "gzip.fits.fz": _fits(fits.CompImageHDU(flux, compression_type="GZIP_2")),
        "packed.fits.gz": gzip.compress(plain, mtime=0),
        "struct.parquet": _parquet(table),
        "lists.parquet": _parquet(lists),
        "plain.tar": _tar(encoded, pixels, plain, "w"),
        "packed.tgz": _tar(encoded, pixels, plain, "w:gz"),
        "stored.npz": _saved(np.savez, images=pixels, labels=np.arange(2)),
        "deflated.npz": _saved(np.savez_compressed, images=pixels, labels=np.arange(2)),
        "pixels.npy": _saved(np.save, arr=pixels),
        "fluxes.npy": _saved(np.save, arr=np.asfortranarray(flux)),
        "images.h5": _hdf5(pixels),
        "image.png": encoded["png"],
        "image.tiff": encoded["tiff"],
    }


def _image(pixels: Any, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(buffer, kind)
    return buffer.getvalue()


def _fits(*hdus: Any) -> bytes:
    buffer = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(buffer)
    return buffer.getvalue()


def _hdf5(pixels: Any) -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.create_dataset("images", data=pixels, chunks=(1, *pixels.shape[1:]), compression=4)
        file["ra"] = np.arange(len(pixels), dtype=float)
    return buffer.getvalue()


def _parquet(columns: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def _saved(save: Any, **arrays: Any) -> bytes:
    buffer = io.BytesIO()
    save(buffer, **arrays)
    return buffer.getvalue()


def _tar(encoded: dict[str, bytes], pixels: Any, plain: bytes, mode: str) -> bytes:
    members = {
        "1.png": encoded["png"],
        "2.npy": _saved(np.save, arr=pixels),
        "3.fits": plain,
        "4.cls": b"7",
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo("5.png")
        link.type, link.linkname = tarfile.LNKTYPE, "1.png"
        archive.addfile(link)
    return buffer.getvalue()


def mutated(number: int, seed: int, sound: dict[str, bytes]) -> tuple[str, bytes]:
    """The name and bytes of an input."""
    dice = random.Random(f"{seed}/{number}")
    name = dice.choice(sorted(sound))
    data = bytearray(sound[name])
    for _ in range(dice.choice((1, 1, 2, 4))):
        data = dice.choice(_MUTATIONS)(data, dice)
    return f"{number:06}-{name}", bytes(data)


def _flip(data: bytearray, dice: random.Random) -> bytearray:
    for _ in range(dice.choice((1, 3, 30)) if data else 0):
        data[dice.randrange(len(data))] = dice.randrange(256)
    return data


def _cut(data: bytearray, dice: random.Random) -> bytearray:
    return data[: dice.randrange(len(data) + 1)]


def _repeat(data: bytearray, dice: random.Random) -> bytearray:
    at, length = dice.randrange(len(data) + 1), dice.choice((1, 512, 2880))
    return data[:at] + data[at : at + length] * 2 + data[at + length :]


def _remove(data: bytearray, dice: random.Random) -> bytearray:
    at = dice.randrange(len(data) + 1)
    return data[:at] + data[at + dice.choice((1, 8, 512)) :]


def _digits(data: bytearray, dice: random.Random) -> bytearray:
    """Sizes that lie: a digit of a text header becomes another, or many."""
    places = [place for place, byte in enumerate(data[:6000]) if 0x30 <= byte <= 0x39]
    if places:
        at = dice.choice(places)
        end = at + dice.choice((1, 1, 6))
        data[at:end] = bytes(dice.choice(b"0123456789-.") for _ in range(end - at))
    return data


def _numbers(data: bytearray, dice: random.Random) -> bytearray:
    """Sizes that lie: four or eight bytes become an extreme number."""
    length = dice.choice((2, 4, 8))
    if len(data) > length:
        at = dice.randrange(len(data) - length)
        value = dice.choice((0, 1, (1 << (8 * length)) - 1, 1 << (8 * length - 1), 1 << 20))
        value &= (1 << (8 * length)) - 1
        data[at : at + length] = value.to_bytes(length, dice.choice(("little", "big")))
    return data


def _words(data: bytearray, dice: random.Random) -> bytearray:
    """Keywords and names that are others, or no text."""
    start = dice.randrange(len(data) + 1)
    data[start : start + 8] = dice.choice(
        (b"NAXIS   ", b"BITPIX  ", b"XTENSION", b"\xff" * 8, b"\0" * 8, b"ZCMPTYPE", b"IMAGE   ")
    )
    return data


_MUTATIONS = (_flip, _flip, _cut, _repeat, _remove, _digits, _digits, _numbers, _words)


@dataclass
class Report:
    """What happened; `faults` must stay empty."""

    inputs: int = 0
    rows: int = 0
    seconds: float = 0.0
    gained_mib: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, object]:
        told = {**vars(self), "outcomes": dict(sorted(self.outcomes.items()))}
        return {**told, "seconds": round(self.seconds, 1), "gained_mib": round(self.gained_mib, 1)}


def fuzz(url: str, *, inputs: int, seed: int = 0, first: int = 0) -> Report:
    """Embed so many inputs through the service at `url`, a folder of them at a time."""
    report = Report()
    sound = sound_files()
    _embed(url, sound, Report())
    before = _peak()
    started = time.monotonic()
    for start in range(first, first + inputs, BATCH):
        numbers = range(start, min(start + BATCH, first + inputs))
        files = dict(mutated(number, seed, sound) for number in numbers)
        faulthandler.dump_traceback_later(BATCH_S, exit=True)
        _embed(url, files | {"sound.png": sound["image.png"]}, report)
        faulthandler.cancel_dump_traceback_later()
        report.inputs += len(files)
    report.seconds = time.monotonic() - started
    report.gained_mib = (_peak() - before) / MIB
    if report.gained_mib > MEMORY / MIB:
        report.faults.append(f"memory grew by {report.gained_mib:.0f} MiB")
    return report


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _embed(url: str, files: dict[str, bytes], report: Report) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "in"
        folder.mkdir()
        for file, data in files.items():
            (folder / file).write_bytes(data)
        output = Path(name) / "out.npy"
        options = ["--on-error", "skip", "--quiet", "--url", url, "-o", str(output)]
        try:
            code = run(["embed", str(folder), *options])
        except BaseException:
            report.faults.append(f"{min(files)}: {traceback.format_exc()}")
            return
        if not output.exists():
            report.faults.append(f"{min(files)}: no output, exit code {code}")
            return
        account(folder, files, output, report)


def account(folder: Path, files: dict[str, bytes], output: Path, report: Report) -> None:
    """Count what became of each file; one of which nothing is told is a fault."""
    about = json.loads(sidecar(output).read_bytes())
    report.rows += len(about["ids"])
    rows = {_file(row_id, folder) for row_id in about["ids"]}
    skipped = {_file(one["id"], folder) for one in about["skipped"]}
    for name in files:
        outcome = _outcome(name in rows, name in skipped)
        if outcome is None and all(
            not getattr(entry, "fault", True)
            for entry in open_reader(str(folder / name), ReadOptions()).read(0)
        ):
            outcome = "passed over"
        if outcome is None:
            report.faults.append(f"{name}: neither a row nor named")
        else:
            report.outcomes[outcome] += 1


def _outcome(row: bool, skip: bool) -> str | None:
    if row and skip:
        return "rows, then skipped"
    return "rows" if row else "skipped" if skip else None


def _file(row_id: str, folder: Path) -> str:
    rest = row_id.removeprefix(f"{folder}/")
    for mark in "/#:[":
        rest = rest.partition(mark)[0]
    return rest


@contextmanager
def service() -> Iterator[str]:
    """The address of a real service with an engine that needs no weights, in its own process."""
    command = [sys.executable, str(SERVER), str(_SIDE)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    given = parser.parse_args()
    with service() as url:
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, resource.RLIM_INFINITY))
        report = fuzz(url, inputs=given.inputs, seed=given.seed, first=given.first)
    print(json.dumps(report.summary(), indent=1))
    sys.exit(bool(report.faults))


if __name__ == "__main__":
    main()
