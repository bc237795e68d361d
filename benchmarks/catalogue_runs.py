"""`vim-embed embed --catalogue` beside `embed` of ready cut-outs with the same pixels.

    PYTHONPATH=service:client python benchmarks/catalogue_runs.py
    PYTHONPATH=service:client python benchmarks/catalogue_runs.py --model vim-tiny --positions 500

Writes a sparse mosaic of 30,000 by 30,000 pixels (3.6 GB, of which only those about the positions
take room on the disk) and a catalogue of random positions in no order. `vim-embed cutout` makes
the ready cut-outs. Then both ways are embedded in turn, through a real server: without --model it
runs an engine that computes next to nothing, so that the client is the bottleneck, which is the
worst case. Prints rows/s of each run, the command's CPU time a row (start and imports
included, which a busy machine hardly changes), its most resident memory, both with the processes
that it starts, and the ratio of the medians to the fastest kind of ready cut-outs; the exit code is
1 if it is below 80 %, or the memory is 1 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

from vim_embed_client.local_server import LocalServer

LEAST_RATIO, MOST_MEMORY = 0.8, 10**9
SCALE = 0.168  # arcseconds a pixel, as HSC has
IMAGE_SIZE = 224
PROGRAM = sys.executable, "-m", "vim_embed_client.cli"
_STUB = f"""
import asyncio, uvicorn
from vim_embed.engines.arithmetic import ArithmeticEngine
from vim_embed.http.app import create_app
from vim_embed.settings import Settings
async def main():
    app = create_app(Settings(), ArithmeticEngine(image_size={IMAGE_SIZE}))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, access_log=False))
    serving = asyncio.create_task(server.serve())
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    print("http://127.0.0.1:%d" % server.servers[0].sockets[0].getsockname()[1], flush=True)
    await serving
asyncio.run(main())
"""


class Run(NamedTuple):
    """rate: rows/s. memory: the most that was resident, in bytes. cpu: ms of the command a row."""

    rate: float
    memory: int
    cpu: float


def write_sky(folder: Path, side: int, positions: int, stamp: int, seed: int = 0) -> None:
    """`mosaic.fits`, sparse, with a noisy galaxy at each position of `cat.fits`."""
    rng = np.random.default_rng(seed)
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval, wcs.wcs.crpix = (150, 2), (side / 2, side / 2)
    wcs.wcs.cdelt = -SCALE / 3600, SCALE / 3600
    header = fits.Header([("SIMPLE", True), ("BITPIX", -32), ("NAXIS", 2)])
    header["NAXIS1"] = header["NAXIS2"] = side
    header.update(wcs.to_header())
    path = folder / "mosaic.fits"
    header.tofile(path)
    start = path.stat().st_size
    size = start + side * side * 4
    os.truncate(path, size + -size % 2880)
    places = rng.uniform(stamp, side - stamp, (positions, 2))
    pixels = np.memmap(path, ">f4", "r+", start, (side, side))
    half = stamp // 2
    v, u = np.indices((stamp, stamp)) - half
    for x, y in places:
        galaxy = 50 * np.exp(-np.hypot(u, v * rng.uniform(1, 2)) / rng.uniform(2, 6))
        left, bottom = round(x) - half, round(y) - half
        galaxy += rng.normal(0, 1, galaxy.shape)
        pixels[bottom : bottom + stamp, left : left + stamp] = galaxy
    del pixels
    ra, dec = wcs.wcs_pix2world(places, 0).T
    Table({"id": np.arange(positions), "ra": ra, "dec": dec}).write(folder / "cat.fits")


@contextmanager
def served(model: str | None) -> Iterator[str]:
    """A server in a process of its own; yields its URL."""
    if model is not None:
        with LocalServer([model], random_weights=True) as server:
            yield server.url
        return
    with subprocess.Popen([sys.executable, "-c", _STUB], stdout=subprocess.PIPE, text=True) as stub:
        try:
            assert stub.stdout is not None
            yield stub.stdout.readline().strip()
        finally:
            stub.terminate()


def timed(command: Sequence[str]) -> Run:
    """A run of `vim-embed embed` with --json."""
    memory, before = 0, os.times()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            memory = max(memory, resident(process.pid))
            time.sleep(0.05)
        assert process.stdout is not None
        told = process.stdout.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    after, summary = os.times(), json.loads(told)
    cpu = sum(after[2:4]) - sum(before[2:4])  # of children that have ended
    return Run(summary["rows_per_s"], memory, 1e3 * cpu / summary["rows"])


def resident(pid: int) -> int:
    """The most bytes that a process had resident so far, and those it started; 0 once it ended."""
    folder = Path(f"/proc/{pid}")
    try:
        lines = (folder / "status").read_text().splitlines()
        started = [(one / "children").read_text().split() for one in (folder / "task").iterdir()]
    except OSError:
        return 0
    found = (line.split()[1] for line in lines if line.startswith("VmHWM"))
    own = int(next(found, "0")) * 1024
    return own + sum(resident(int(child)) for some in started for child in some)


KINDS = {"HDF5": "ready.h5", "Parquet": "ready.parquet", "a folder of FITS": "ready"}


def ready_cutouts(folder: Path, cut: Sequence[str], kinds: Sequence[str]) -> dict[str, Path]:
    """The cut-outs as an array, and as files of other kinds."""
    import h5py

    found = {kind: folder / KINDS[kind] for kind in kinds if kind in KINDS}
    for path in {folder / KINDS["HDF5"], *found.values()}:
        subprocess.run([*cut, "-o", str(path)], check=True, stdout=subprocess.DEVNULL)
    with h5py.File(folder / "ready.h5") as file:
        np.save(folder / "ready.npy", file["images"][:])
    return {".npy": folder / "ready.npy"} | found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a real model with random weights, in place of the stub")
    parser.add_argument("--side", type=int, default=30_000, help="pixels of the mosaic")
    parser.add_argument("--positions", type=int, default=10_000)
    parser.add_argument("--cutout", type=int, default=64, help="pixels of a cut-out's side")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--kinds", default="", help="of ready cut-outs beside .npy, such as HDF5")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, served(given.model) as url:
        folder = Path(name)
        write_sky(folder, given.side, given.positions, given.cutout + 24)
        sky = [str(folder / "mosaic.fits"), "--catalogue", str(folder / "cat.fits")]
        sky += ["--size", f"{given.cutout * SCALE:.6f}arcsec"]
        kinds = given.kinds.split(",") if given.kinds else list(KINDS)
        ready = ready_cutouts(folder, [*PROGRAM, "cutout", *sky], kinds)
        ways = {"--catalogue": sky}
        ways |= {kind: [str(path)] for kind, path in ready.items()}
        return report(ways, [*PROGRAM, "embed", "--url", url, "--json", "--quiet"], folder, given)


def report(
    ways: dict[str, list[str]], embed: list[str], folder: Path, given: argparse.Namespace
) -> int:
    """Run all in turn, print the table, and return the exit code."""
    runs: dict[str, list[Run]] = {way: [] for way in ways}
    for _ in range(given.repeats):
        for way, sources in ways.items():
            output = folder / "out.parquet"
            output.unlink(missing_ok=True)
            runs[way].append(timed([*embed, *sources, "-o", str(output)]))
    medians = {way: statistics.median(run.rate for run in each) for way, each in runs.items()}
    print(f"{given.positions:,} positions, {given.cutout} pixels, model {given.model or 'stub'}")
    for way, each in runs.items():
        rates = ", ".join(f"{run.rate:,.0f}" for run in each)
        most = max(run.memory for run in each)
        cpu = statistics.median(run.cpu for run in each)
        told = f"{medians[way]:8,.0f} rows/s ({rates}), {cpu:.2f} ms of CPU a row"
        print(f"{way:18} {told}, {most / 2**20:,.0f} MiB")
    ratio = medians["--catalogue"] / max(rate for way, rate in medians.items() if way[0] != "-")
    memory = max(run.memory for run in runs["--catalogue"])
    print(f"ratio to the fastest: {ratio:.0%}")
    return int(ratio < LEAST_RATIO or memory >= MOST_MEMORY)


if __name__ == "__main__":
    sys.exit(main())
