"""Cut-outs made in another process: the same rows, faults and all, and nothing left behind."""

from __future__ import annotations

import pickle
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from vim_embed_client.bulk.run import BulkRun
from vim_embed_client.bulk.sources import apart
from vim_embed_client.bulk.sources.apart import open_reader_apart
from vim_embed_client.bulk.sources.options import ReadOptions, SkyOptions
from vim_embed_client.bulk.sources.reader import Entry, Skipped
from vim_embed_client.bulk.sources.registry import open_reader
from vim_embed_client.client import Client
from vim_embed_client.errors import ConfigurationError, InputError, VimEmbedError
from vim_embed_client.scoring.embedding_files import read_embeddings

from .skies import around, catalogue, painted, tangent, write

SIDE, ROWS = 260, 49


@pytest.fixture
def sky(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ReadOptions]:
    """A catalogue, all rows of which another process reads.

    Of its rows, one is off the mosaic, one masked, one without a position, one on constant fluxes
    and one beside an area of zeros.
    """
    monkeypatch.setattr(apart, "LEAST_ROWS", 1)
    wcs = tangent(150, 2, 0.2, (SIDE, SIDE), angle=10)
    galaxies = around(150, 2, 18, ROWS)
    pixels = painted(galaxies, wcs, (SIDE, SIDE), noise=0.01)
    x, y = np.rint(wcs.wcs_world2pix(galaxies.ra, galaxies.dec, 0)).astype(int)
    for row, value, half, right in ((9, np.nan, 9, 9), (39, 0.0, 18, 18), (23, 0.0, 12, -3)):
        pixels[y[row] - half : y[row] + half, x[row] - half : x[row] + right] = value
    write(tmp_path / "tile.fits", pixels, wcs)
    galaxies.ra[5] += 1
    galaxies.ra[7] = np.nan
    catalogue(tmp_path / "cat.fits", galaxies)
    options = SkyOptions(images=(str(tmp_path / "tile.fits"),), size=3.0)
    return str(tmp_path / "cat.fits"), ReadOptions(sky=options, id_column="name", keep=("z",))


def _told(entry: Entry) -> tuple[Any, ...]:
    """All that matters of an entry, whichever process made its pixels."""
    if isinstance(entry, Skipped):
        return (entry,)
    data: Any = entry.data
    try:
        pixels = data()
    except VimEmbedError as error:
        return (Skipped(id=entry.id, reason=error.message),)
    return (
        entry.id, pixels.tobytes(), pixels.dtype, pixels.shape, entry.size, entry.columns,
        entry.like, entry.note,
    )  # fmt: skip


def those_apart() -> list[psutil.Process]:
    """Those that make cut-outs for this process; servers of other tests may be there, too."""
    found = []
    for process in psutil.Process().children():
        with suppress(psutil.Error):  # it has just ended
            if apart._START in process.cmdline():
                found.append(process)
    return found


@pytest.mark.parametrize("start", [0, 8])
def test_entries_are_the_same(sky: tuple[str, ReadOptions], start: int) -> None:
    source, options = sky
    wanted = list(map(_told, open_reader(source, options).read(start)))
    assert len(wanted) == ROWS - start
    assert {len(one) for one in wanted} == {1, 8}
    assert any(len(one) == 8 and one[-1] for one in wanted), "a row with a note"
    assert any(len(one) == 1 and "too flat" in one[0].reason for one in wanted)
    reader = open_reader_apart(source, options)
    assert list(map(_told, reader.read(start))) == wanted
    assert not those_apart()


def test_few_rows_need_no_process(
    sky: tuple[str, ReadOptions], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apart, "LEAST_ROWS", ROWS)
    monkeypatch.setattr(subprocess, "Popen", None)
    rows = open_reader_apart(*sky).read(1)
    assert len(list(rows)) == ROWS - 1


def test_a_run_is_the_same_and_goes_on(
    sky: tuple[str, ReadOptions], service_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, options = sky
    seen: set[int] = set()

    def embed(name: str, stop_at: int = ROWS + 1) -> Any:
        def progress(done: int, resumed: int, rows: int | None) -> None:
            seen.update(one.pid for one in those_apart())
            if done >= stop_at:
                raise KeyboardInterrupt

        with Client(service_url) as client:
            summary = BulkRun(
                client, [source], tmp_path / name, read_options=options, batch_rows=3,
                in_flight=2, part_rows=4, on_error="skip", on_progress=progress,
            ).run()  # fmt: skip
        found = read_embeddings(str(tmp_path / name))
        left_out = summary.first_skipped, summary.first_passed_over, summary.notes.as_json()
        return found.ids, found.embeddings.tobytes(), left_out

    with pytest.raises(KeyboardInterrupt):
        embed("apart.npy", stop_at=20)
    resumed = embed("apart.npy")
    assert len(seen) == 2, "a process for each attempt"
    seen.clear()
    monkeypatch.setattr(apart, "LEAST_ROWS", ROWS + 1)
    assert resumed == embed("here.npy")
    assert not seen
    assert not psutil.wait_procs(those_apart(), timeout=60)[1]


def test_errors_are_those_of_the_reader(sky: tuple[str, ReadOptions]) -> None:
    source, options = sky
    missing = open_reader_apart(source, replace(options, keep=("zz",)))
    with pytest.raises(ConfigurationError, match="no column 'zz'"):
        list(missing.read(0))
    assert options.sky is not None
    mosaic = options.sky.images[0]
    Path(mosaic).write_bytes(b"no FITS at all")
    with pytest.raises(InputError) as wanted:
        list(open_reader(source, options).read(0))
    with pytest.raises(InputError) as found:
        list(open_reader_apart(source, options).read(0))
    assert found.value.message == wanted.value.message


def test_what_ends_the_reading_comes_behind_its_rows(
    sky: tuple[str, ReadOptions], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Skipped(id="first", reason="it is empty")

    class Broken:
        def read(self, start: int) -> Iterator[Entry]:
            yield first
            raise InputError("it cannot be read any further")

    with monkeypatch.context() as patched:
        patched.setattr(apart, "open_reader", lambda source, options: Broken())
        sent = list(apart._grouped(apart._made_or_why_not(*sky, 0)))
    answers = b"".join(map(pickle.dumps, sent))
    monkeypatch.setattr(apart, "_START", f"import sys; sys.stdout.buffer.write({answers!r})")
    rows = open_reader_apart(*sky).read(0)
    assert next(rows) == first
    with pytest.raises(InputError, match="any further"):
        next(rows)


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ("import os; os._exit(3)", "3"),
        ("import sys; sys.stdout.buffer.write(bytes([128, 5, 149]))", "0"),
        ("import os; os.kill(os.getpid(), 9)", "-9"),
    ],
    ids=["it fails", "it ends within an answer", "it is killed"],
)
def test_a_process_that_ends_is_told(
    sky: tuple[str, ReadOptions], monkeypatch: pytest.MonkeyPatch, program: str, code: str
) -> None:
    monkeypatch.setattr(apart, "_START", program)
    with pytest.raises(VimEmbedError, match=rf"ended \(exit code {code}\).*goes on"):
        list(open_reader_apart(*sky).read(0))


def test_the_process_ends_with_those_who_read(sky: tuple[str, ReadOptions]) -> None:
    rows: Iterator[Entry] = open_reader_apart(*sky).read(0)
    next(rows)
    assert those_apart()
    rows.close()  # type: ignore[attr-defined]
    assert not those_apart()


def test_the_process_ends_when_nobody_listens(sky: tuple[str, ReadOptions], capfd: Any) -> None:
    """As where the command was killed: in peace, without a traceback."""
    with apart._process() as process:
        assert process.stdout is not None
        process.stdout.close()
        apart._order(process, *sky, 0)
        assert process.wait(60) == 0
    assert capfd.readouterr().err == ""
