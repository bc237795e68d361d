"""Headers of .npy files are parsed one at a time, whatever the number of threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.lib import format as npy_format

from vim_embed.http.formats.arrays import read_npy
from vim_embed_client.bulk.sources.arrays import open_array
from vim_embed_client.formats import parse_npy

# of sizes that nothing else has: a header that was read before is not parsed again
ARRAYS = [np.arange(701 + i, dtype=np.uint8) for i in range(24)]


class OneAtATime:
    """Counts how many threads are in numpy's header parser at once."""

    def __init__(self, original: Callable[..., Any]) -> None:
        self.original = original
        self.inside, self.most, self.calls = 0, 0, 0
        self.lock = threading.Lock()

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        with self.lock:
            self.inside += 1
            self.calls += 1
            self.most = max(self.most, self.inside)
        time.sleep(0.005)
        try:
            return self.original(*arguments, **keywords)
        finally:
            with self.lock:
                self.inside -= 1


@pytest.mark.parametrize("reader", ["service", "answer", "file"])
def test_headers_are_parsed_one_at_a_time(
    reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / f"{len(array)}.npy" for array in ARRAYS]
    for path, array in zip(paths, ARRAYS, strict=True):
        np.save(path, array)
    read: dict[str, Callable[[Path], Any]] = {
        "service": lambda path: read_npy(path.read_bytes()),
        "answer": lambda path: parse_npy(path.read_bytes()),
        "file": lambda path: open_array(str(path)),
    }
    parser = OneAtATime(np.lib.format.read_array_header_1_0)
    monkeypatch.setattr(npy_format, "read_array_header_1_0", parser)
    inner = getattr(np.lib, "_format_impl", npy_format)  # what np.load calls
    monkeypatch.setattr(inner, "_read_array_header", OneAtATime(inner._read_array_header))
    with ThreadPoolExecutor(8) as pool:
        for found, array in zip(pool.map(read[reader], paths), ARRAYS, strict=True):
            np.testing.assert_array_equal(found, array)
    seen = [parser, inner._read_array_header]
    assert sum(counter.calls for counter in seen) >= 24
    assert max(counter.most for counter in seen) == 1
