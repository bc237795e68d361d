"""The measurements measure what they say; no assertion on times."""

from __future__ import annotations

import sys

import pytest
import torch

from service.kernels.cases import assert_close, direction
from vim_embed.bench import cpu as bench
from vim_embed.kernels.reference import scan_direction


def test_plain_scan_computes_the_scan() -> None:
    inputs = direction(2, 63, 48)
    got = bench.plain_scan(bench.channels_first(inputs)).transpose(1, 2)
    assert_close(got, scan_direction(inputs, reverse=False))


def test_forward_and_scan_tables() -> None:
    forward = bench.bench_forward("vim-tiny", batch=1, threads=1, backends=["torch"], repeats=1)
    scan = bench.bench_scan("vim-tiny", batch=1, threads=1, backends=["torch"], repeats=1)
    assert forward.ratio("torch") > 1
    assert set(scan.directions) == {"plain", "torch"}
    assert "matmuls alone" in bench.forward_table(forward)
    assert len(bench.scan_table(scan).splitlines()) == 3


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    bench.bench_scan("vim-tiny", batch=1, threads=before + 1, backends=[], repeats=1)
    assert torch.get_num_threads() == before


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_memory_of_a_fresh_process() -> None:
    result = bench.bench_memory("vim-tiny", batch=1, backend="torch", threads=1)
    assert 1 < result.extra_mb < 1200
    assert "vim-tiny" in bench.memory_table([result])


def test_a_failed_memory_measurement_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="unknown backend 'nope'"):
        bench.bench_memory("vim-tiny", batch=1, backend="nope", threads=1)
