"""Rows of several requests become one batch, whichever threads copy the pieces."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from vim_embed.inference import staging
from vim_embed.inference.staging import HostStaging, put_together
from vim_embed.types.pixels import PixelArray


@pytest.mark.parametrize("lengths", [[1], [64], [1, 40, 2, 21], [30, 30], [3, 0, 4]])
@pytest.mark.parametrize("piece", [10_000, 100_000, 4 * 1024 * 1024])
@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32])
def test_every_row_is_in_its_place(
    lengths: list[int], piece: int, dtype: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "_PIECE_BYTES", piece)
    generator = np.random.default_rng()
    parts: list[PixelArray] = [
        (200 * generator.random((n, 3, 64, 64))).astype(dtype) for n in lengths
    ]
    parts[0] = np.ascontiguousarray(parts[0][..., ::-1])[..., ::-1]  # not contiguous
    for part in parts:
        part.flags.writeable = False
    out: PixelArray = np.full(
        (sum(lengths), 3, 64, 64), 201 if dtype is np.uint8 else np.nan, dtype
    )
    whole, seen = np.concatenate(parts), [0] * sum(lengths)

    def there(rows: slice) -> None:
        assert np.array_equal(out[rows], whole[rows])
        for row in range(*rows.indices(len(out))):
            seen[row] += 1

    with ThreadPoolExecutor(3) as helpers:
        put_together(parts, out, there, helpers)
    assert np.array_equal(out, whole)
    assert seen == [1] * len(out)


def test_helpers_that_are_busy_are_not_waited_for() -> None:
    parts: list[PixelArray] = [np.ones((8, 3, 512, 512), np.float32)]
    out, free = np.zeros((8, 3, 512, 512), np.float32), threading.Event()
    with ThreadPoolExecutor(1) as helpers:
        busy = helpers.submit(free.wait, 60)
        put_together(parts, out, lambda rows: None, helpers)
        assert not busy.done()
        free.set()
    assert out.all()


@pytest.mark.parametrize("place", ["here", "a helper"])
def test_a_copy_that_fails_is_told_once_all_have_ended(place: str) -> None:
    parts: list[PixelArray] = [np.zeros((16, 3, 512, 512), np.float32)]
    out = np.empty((16, 3, 512, 512), np.float32)
    here, failed, under_way = threading.current_thread(), threading.Event(), 0
    lock = threading.Lock()

    def fails(rows: slice) -> None:
        nonlocal under_way
        with lock:
            under_way += 1
        mine = threading.current_thread() is here
        if mine is (place == "here"):
            failed.set()
        else:
            failed.wait(60)
        with lock:
            under_way -= 1
        if mine is (place == "here"):
            raise OSError("the device is lost")

    with ThreadPoolExecutor(2) as helpers:
        with pytest.raises(OSError, match="lost"):
            put_together(parts, out, fails, helpers)
        assert under_way == 0


def test_on_a_cpu_rows_stay_there() -> None:
    parts = [np.random.default_rng().random((n, 3, 8, 8), dtype=np.float32) for n in (2, 3)]
    assert np.array_equal(HostStaging(torch.device("cpu"))(parts).ready(), np.concatenate(parts))
