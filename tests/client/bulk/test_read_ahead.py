"""Windows of a file that is not in memory: asked for at once, and the same pixels."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from vim_embed_client.formats import Array
from vim_embed_client.sky import read_ahead
from vim_embed_client.sky.sections import Sections, Window

WINDOW = Window(100, 131, 50, 90)
pytestmark = pytest.mark.skipif(
    not hasattr(os, "posix_fadvise"), reason="the system takes no such advice"
)


def read(path: Path) -> Array:
    with fits.open(path, memmap=False) as hdus, open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return Sections(hdus[0], None, file.fileno()).read(WINDOW)


def advised(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Start and length of the pieces that are asked for."""
    found: list[tuple[int, int]] = []

    def advise(file: int, start: int, length: int, advice: int) -> None:
        if advice == os.POSIX_FADV_WILLNEED:
            found.append((start, length))

    monkeypatch.setattr(os, "posix_fadvise", advise)
    return found


@pytest.fixture
def mosaic(tmp_path: Path) -> tuple[Path, Array]:
    pixels = np.random.default_rng().normal(size=(300, 4000)).astype(np.float32)
    fits.PrimaryHDU(pixels).writeto(tmp_path / "mosaic.fits")
    os.sync()  # what is not on the disk yet stays in memory
    return tmp_path / "mosaic.fits", pixels[100:131, 50:90]


def test_pixels_of_a_file_on_the_disk(mosaic: tuple[Path, Array]) -> None:
    path, expected = mosaic
    np.testing.assert_array_equal(read(path), expected)


@pytest.mark.parametrize("error", [errno.EAGAIN, errno.EOPNOTSUPP, errno.EINVAL])
def test_each_row_is_asked_for(
    mosaic: tuple[Path, Array], monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """Where the middle one is not in memory, or the file system does not say."""

    def absent(*_: object) -> int:
        raise OSError(error, os.strerror(error))

    found = advised(monkeypatch)
    monkeypatch.setattr(os, "preadv", absent)
    path, expected = mosaic
    np.testing.assert_array_equal(read(path), expected)
    start = 2880 + 4 * (100 * 4000 + 50)
    assert found == [(start + row * 16_000, 160) for row in range(31)]


def test_advice_that_is_not_taken_does_no_harm(
    mosaic: tuple[Path, Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> int:
        raise OSError(errno.ESPIPE, os.strerror(errno.ESPIPE))

    path, expected = mosaic
    with fits.open(path, memmap=False) as hdus, open(path, "rb") as file:
        sections = Sections(hdus[0], None, file.fileno())
        monkeypatch.setattr(os, "preadv", refused)
        monkeypatch.setattr(os, "posix_fadvise", refused)
        np.testing.assert_array_equal(sections.read(WINDOW), expected)


def test_nothing_is_asked_for_that_is_in_memory(
    mosaic: tuple[Path, Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    def present(file: int, buffers: Sequence[bytearray], start: int, flags: int) -> int:
        assert flags == os.RWF_NOWAIT
        return sum(map(len, buffers))

    found = advised(monkeypatch)
    monkeypatch.setattr(os, "preadv", present)
    path, expected = mosaic
    np.testing.assert_array_equal(read(path), expected)
    assert not found


def test_a_system_without_such_calls(
    mosaic: tuple[Path, Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, expected = mosaic
    monkeypatch.setattr(read_ahead, "_POSSIBLE", False)
    monkeypatch.delattr(os, "preadv")
    np.testing.assert_array_equal(read(path), expected)
