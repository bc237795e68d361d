"""The benchmark on a real CUDA device: right numbers, clean memory, and no times asserted."""

from __future__ import annotations

import pytest

from vim_embed.bench.cuda_meter import CudaMeter
from vim_embed.bench.gpu import Case, Figures, cases_of, run
from vim_embed.types.devices import DTYPES

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_line(dtype: str) -> None:
    rivals = ("mamba_ssm", "hustvl", "DeiT")
    (line,) = run([Case("vim-tiny", dtype, 4, 224)], rivals=rivals, seconds=0.05)
    assert isinstance(line.ours, Figures), line.ours
    assert 0 < line.ours.p50 <= line.ours.p99
    assert 10 < line.ours.peak < 250
    for name, their in line.rivals.items():
        assert isinstance(their, Figures) or "install" in their, (name, their)


def test_memory_does_not_depend_on_what_ran_before() -> None:
    cases = cases_of(["vim-tiny"], ["float16"], [64, 8, 64], [224])
    first, _, again = (line.ours for line in run(cases, rivals=(), seconds=0.05))
    assert isinstance(first, Figures)
    assert isinstance(again, Figures)
    assert first.peak == again.peak


def test_a_cleared_device_holds_nothing() -> None:
    meter = CudaMeter()
    before = meter.clear()
    pixels = meter.images(2, 224)
    assert meter.clear() > before
    del pixels
    assert meter.clear() == before
