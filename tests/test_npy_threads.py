"""Headers of .npy files are parsed one at a time, whatever the number of threads."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.lib import format as npy_format

from vim_embed.wire import read_npy
from vim_embed_client.files import open_array
from vim_embed_client.wire import parse_npy

ARRAY = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)


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
    file = io.BytesIO()
    np.save(file, ARRAY)
    path = tmp_path / "array.npy"
    path.write_bytes(file.getvalue())
    read: dict[str, Callable[[], Any]] = {
        "service": lambda: read_npy(file.getvalue()),
        "answer": lambda: parse_npy(file.getvalue()),
        "file": lambda: open_array(str(path)),
    }
    parser = OneAtATime(np.lib.format.read_array_header_1_0)
    monkeypatch.setattr(npy_format, "read_array_header_1_0", parser)
    inner = getattr(np.lib, "_format_impl", npy_format)  # what np.load calls
    monkeypatch.setattr(inner, "_read_array_header", OneAtATime(inner._read_array_header))
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: read[reader](), range(24)):
            np.testing.assert_array_equal(found, ARRAY)
    seen = [parser, inner._read_array_header]
    assert sum(counter.calls for counter in seen) >= 24
    assert max(counter.most for counter in seen) == 1
