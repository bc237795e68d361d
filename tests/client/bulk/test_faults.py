"""Whatever a reader's library raises, the row or file is left out by name and the run goes on."""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fuzz_catalogues
import fuzz_readers
import numpy as np
import pytest
from astropy.io import fits
from astropy.io.fits.verify import VerifyError

from vim_embed_client.bulk.sources.faults import described, each_named
from vim_embed_client.bulk.sources.options import ReadOptions
from vim_embed_client.bulk.sources.reader import Item, Skipped
from vim_embed_client.bulk.sources.registry import format_of, open_reader
from vim_embed_client.cli.main import run
from vim_embed_client.errors import ConfigurationError, InputError, VimEmbedError
from vim_embed_pixels import fits as fits_module

from .conftest import Embed
from .survey import galaxy, pictures, png

RAISED: tuple[Exception, ...] = (
    OSError("no"), EOFError(), ValueError("no"), TypeError("no"), KeyError("no"), IndexError("no"),
    OverflowError("no"), AssertionError(), AttributeError("no"), RuntimeError("no"),
    NotImplementedError("no"), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"), MemoryError(),
    RecursionError("no"), ZeroDivisionError("no"), StopAsyncIteration(), VerifyError("no"),
    UserWarning("an error, since the user said -W error"), ImportError("no"), SyntaxError("no"),
)  # fmt: skip


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
def test_any_exception_is_a_named_fault_after_the_rows_before_it(
    embed: Embed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, error: Exception
) -> None:
    sections = fits_module._section
    cube = np.stack([galaxy(1, seed=seed)[0] for seed in range(4)])
    fits.PrimaryHDU(cube).writeto(tmp_path / "a.fits")
    (tmp_path / "b.png").write_bytes(png(pictures(1)[0]))

    def broken(hdu: Any, at: tuple[Any, ...]) -> Any:
        if at[0] == 2:
            raise error
        return sections(hdu, at)

    monkeypatch.setattr(fits_module, "_section", broken)
    reader = open_reader(str(tmp_path / "a.fits"), ReadOptions(stack=True)).read(0)
    assert [next(reader).id for _ in range(2)] == [f"{tmp_path}/a.fits#{row}" for row in range(2)]
    with pytest.raises(InputError, match=r"cannot be read as FITS \(any further\)") as raised:
        next(reader)
    assert type(error).__name__ in raised.value.message


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), VimEmbedError("gone")])
def test_what_is_no_fault_of_the_file_passes(error: BaseException) -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise error

    entries = each_named(broken(), "cannot be read")
    assert next(entries) == 1
    with pytest.raises(type(error)):
        next(entries)


def test_a_missing_package_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fits.PrimaryHDU(galaxy(1)[0]).writeto(tmp_path / "a.fits")
    monkeypatch.setitem(sys.modules, "astropy.io", None)
    with pytest.raises(ConfigurationError, match="astro"):
        list(open_reader(str(tmp_path / "a.fits"), ReadOptions()).read(0))


def test_messages_are_one_printable_line() -> None:
    assert described(ValueError("a\n\tb\x00\x1b[31m")) == "ValueError: a b\ufffd\ufffd[31m"
    assert described(MemoryError()) == "MemoryError"
    assert len(described(ValueError("x" * 5000))) < 350


SOUND = fuzz_readers.sound_files()


def npz(change: Callable[[bytearray, int, int], None]) -> bytes:
    """An .npz whose one member's entries in the archive are changed at these two places."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=pictures(2))
    data = bytearray(buffer.getvalue())
    change(data, data.index(b"PK\x03\x04"), data.index(b"PK\x01\x02"))
    return bytes(data)


def _encrypted(data: bytearray, local: int, central: int) -> None:
    data[local + 6] |= 1
    data[central + 8] |= 1


def _deflate64(data: bytearray, local: int, central: int) -> None:
    data[local + 8] = data[central + 10] = 9


def fz(damage: Callable[[bytearray], None]) -> bytes:
    buffer = io.BytesIO()
    hdu = fits.CompImageHDU(galaxy(1, 64)[0], compression_type="RICE_1")
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(buffer)
    data = bytearray(buffer.getvalue())
    damage(data)
    return bytes(data)


def _heap(data: bytearray) -> None:
    data[-2880:] = bytes([255]) * 2880


def _huge(data: bytearray) -> None:
    at = data.index(b"ZNAXIS1 =")
    data[at : at + 40] = b"ZNAXIS1 =        999999999999999        "


def _bad_card(data: bytearray) -> None:
    at = data.index(b"NAXIS   =")
    data[at : at + 30] = b"NAXIS   = '\xff\xfe            ' /"


def _plain(damage: Callable[[bytearray], None]) -> bytes:
    buffer = io.BytesIO()
    fits.PrimaryHDU(galaxy(1)[0]).writeto(buffer)
    data = bytearray(buffer.getvalue())
    damage(data)
    return bytes(data)


def _negative(data: bytearray) -> None:
    """astropy reads such a file for ever."""
    at = data.index(b"NAXIS1  =")
    data[at : at + 40] = b"NAXIS1  =                -9999          "


def sparse() -> bytes:
    """A tar whose member claims more bytes than memory has."""
    data = bytearray(SOUND["plain.tar"])
    data[124:136] = b"77777777777\0"
    total = sum(data[:148]) + sum(data[156:512]) + 8 * 32
    data[148:156] = b"%06o\0 " % total
    return bytes(data)


DAMAGED = {
    "heap.fits.fz": fz(_heap),
    "huge.fits.fz": fz(_huge),
    "card.fits": _plain(_bad_card),
    "encrypted.npz": npz(_encrypted),
    "deflate64.npz": npz(_deflate64),
    "lying.tar": sparse(),
    "half.fits.gz": SOUND["packed.fits.gz"][:300],
    "names.parquet": SOUND["struct.parquet"].replace(b"image", b"im\xff\xfee"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_skipped_by_name(embed: Embed, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(DAMAGED[name])
    (tmp_path / "z.png").write_bytes(png(pictures(1)[0]))
    found: list[Any] = []
    reader = open_reader(str(tmp_path / name), ReadOptions())
    try:
        found += reader.read(0)
    except InputError as error:
        found.append(Skipped(id=reader.name, reason=error.message))
    assert any(isinstance(entry, Skipped) and entry.fault for entry in found)
    ids, rows = embed(tmp_path, "--on-error", "skip", code=5)
    assert f"{tmp_path}/z.png" in ids
    assert len(rows) == len(ids) == 1 + sum(isinstance(entry, Item) for entry in found)


def shipped() -> list[Path]:
    """Files of images, arrays and tables that the installed packages ship, such as for tests."""
    packages = ("astropy", "skimage", "pyarrow", "numpy", "matplotlib", "scipy", "datasets")
    found = []
    for package in packages:
        spec = find_spec(package)
        for place in (spec and spec.submodule_search_locations) or ():
            for path in sorted(Path(place).rglob("*")):
                if path.is_file() and format_of(path.name) and path.stat().st_size < 1 << 20:
                    found.append(path)
    return found


def test_every_file_that_packages_ship_is_rows_or_a_reason(
    service_url: str, tmp_path: Path, capsys: Any
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    files = shipped()
    assert len(files) > 100
    for number, path in enumerate(files):
        (folder / f"{number:03}-{path.name}").symlink_to(path)
    output = tmp_path / "o.npy"
    args = ["embed", str(folder), "--url", service_url, "--on-error", "skip", "--hdu", "all"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run([*args, "-o", str(output), "--quiet"]) in (0, 5), capsys.readouterr().err
    report = fuzz_readers.Report()
    names = {path.name: b"" for path in folder.iterdir()}
    fuzz_readers.account(folder, names, output, report)
    assert not report.faults
    assert report.outcomes["rows"] > 40


def test_some_hundred_mutated_files(service_url: str) -> None:
    """`make fuzz-readers` does the same to 20,000."""
    report = fuzz_readers.fuzz(service_url, inputs=300, seed=1)
    assert not report.faults
    assert sum(report.outcomes.values()) == 300 + 2
    assert report.outcomes["rows"] > 20


def test_damaged_catalogues_and_mosaics() -> None:
    """A first part of `make fuzz-readers`."""
    counts, faults = fuzz_catalogues.fuzz(inputs=80, seed=1)
    assert faults == []
    assert min(counts[outcome] for outcome in ("rows", "skipped", "refused")) > 0
