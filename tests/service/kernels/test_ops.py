"""Every backend of vim_embed.kernels against the reference."""

from __future__ import annotations

import math
import pkgutil
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from service.kernels.cases import (
    LENGTHS,
    TOLERANCES,
    assert_close,
    direction,
    halves,
    randn,
    relative_rms,
)
from vim_embed import kernels
from vim_embed.kernels.ops import MixerOps
from vim_embed.kernels.reference import ReferenceOps
from vim_embed.kernels.select import select_backend

# Module of vim_embed.kernels -> the backend's name; all tests below run on each.
COMPARED = {"chunked": "torch", "cpu": "cpu"}
# Compared with the reference on a GPU, in tests/gpu and tests/service/kernels/test_parity.py.
ELSEWHERE = {"fused", "mamba_ssm"}

REFERENCE = ReferenceOps()


@pytest.fixture(params=COMPARED.values())
def ops(request: pytest.FixtureRequest, has_cpu_kernels: bool) -> MixerOps:
    if request.param == "cpu" and not has_cpu_kernels:
        pytest.skip("no C++ compiler here")
    return select_backend(request.param, torch.device("cpu"), torch.float32).ops


def test_every_backend_is_compared() -> None:
    modules = {module.name for module in pkgutil.iter_modules(kernels.__path__)}
    no_backends = {"build_cache", "constants", "ops", "reference", "select", "streams"}
    assert modules - {*no_backends, *ELSEWHERE} == set(COMPARED)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("channels", [1, 33, 64, 150])
def test_scan(ops: MixerOps, length: int, channels: int) -> None:
    batch = max(2, 512 // (length * channels))  # enough numbers for a relative error
    forward, backward = (direction(batch, length, channels) for _ in range(2))
    _, z = halves(batch, length, channels, torch.float32)
    assert_close(ops.scan(forward, backward, z), REFERENCE.scan(forward, backward, z))


@pytest.mark.parametrize("threads", [2, 3, 70])
def test_any_number_of_threads_computes_the_same(ops: MixerOps, threads: int) -> None:
    forward, backward = (direction(40, 12, 70) for _ in range(2))
    x, z = halves(40, 12, 70, torch.float32)
    weight, bias = randn(70, 4), randn(70)

    def outputs() -> tuple[Tensor, ...]:
        u = ops.conv_silu(x, weight, bias, reverse=False)
        return u, ops.scan(forward, backward, z), *ops.add_norm(u, None, bias, 1e-5)

    before = torch.get_num_threads()
    alone = outputs()
    try:
        torch.set_num_threads(threads)
        together = outputs()
    finally:
        torch.set_num_threads(before)
    for one, other in zip(alone, together, strict=True):
        assert_close(other, one)


@pytest.mark.parametrize("states", [1, 7, 16, 24])
def test_scan_with_any_number_of_states(ops: MixerOps, states: int) -> None:
    forward, backward = (direction(1, 40, 70, states) for _ in range(2))
    z = randn(1, 40, 70)
    assert_close(ops.scan(forward, backward, z), REFERENCE.scan(forward, backward, z))


@pytest.mark.parametrize("rank", [1, 12, 48])
def test_scan_with_any_rank_of_the_steps(ops: MixerOps, rank: int) -> None:
    forward, backward = (direction(1, 41, 70, rank=rank) for _ in range(2))
    z = randn(1, 41, 70)
    assert_close(ops.scan(forward, backward, z), REFERENCE.scan(forward, backward, z))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scan_converts_other_dtypes(ops: MixerOps, dtype: torch.dtype) -> None:
    forward, backward = (direction(2, 63, 48, dtype=dtype) for _ in range(2))
    _, z = halves(2, 63, 48, dtype)
    assert_close(ops.scan(forward, backward, z), REFERENCE.scan(forward, backward, z))


@pytest.mark.parametrize("scale", [1e-4, 1e3])
def test_scan_with_extreme_decays(ops: MixerOps, scale: float) -> None:
    """Decays very close to 1 lose nothing over a long sequence; vanishing ones reach 0."""
    forward, backward = (direction(1, 785, 32) for _ in range(2))
    forward, backward = (replace(d, A_log=d.A_log + math.log(scale)) for d in (forward, backward))
    z = randn(1, 785, 32)
    assert_close(ops.scan(forward, backward, z), REFERENCE.scan(forward, backward, z))


def test_scan_with_decays_that_vanish_in_one_channel_or_at_one_token(ops: MixerOps) -> None:
    forward, backward = (direction(2, 70, 48) for _ in range(2))
    for d in (forward, backward):
        d.A_log[20] += math.log(1e3)
        d.step_weight[:, 0] = 0.0
        d.step_weight[40, 0] = 1.0
        d.step[1, 33, 0] = 400.0
    z = randn(2, 70, 48)
    assert_close(ops.scan(forward, backward, z), REFERENCE.scan(forward, backward, z))


@pytest.mark.parametrize("a_log", [-300.0, -30.0, 30.0, 300.0])
def test_scan_with_states_that_keep_all_or_nothing(ops: MixerOps, a_log: float) -> None:
    forward, backward = (direction(1, 40, 48) for _ in range(2))
    for d in (forward, backward):
        d.A_log[7:20] = a_log
    z = randn(1, 40, 48)
    assert_close(ops.scan(forward, backward, z), REFERENCE.scan(forward, backward, z))


def test_scan_of_large_values_stays_finite(ops: MixerOps) -> None:
    forward, backward = (direction(1, 63, 32) for _ in range(2))
    forward, backward = (replace(d, step=d.step * 60) for d in (forward, backward))
    z = randn(1, 63, 32) * 200
    assert_close(ops.scan(forward, backward, z), REFERENCE.scan(forward, backward, z))


@pytest.mark.parametrize("source", ["u", "step", "B"])
def test_scan_passes_nan_on_to_its_image_alone(ops: MixerOps, source: str) -> None:
    forward, backward = (direction(2, 20, 32) for _ in range(2))
    z = randn(2, 20, 32)
    getattr(forward, source)[1, 7, 3] = torch.nan
    got = ops.scan(forward, backward, z)
    assert not got[0].isnan().any()
    assert got[1, 7:, 3].isnan().all()
    assert not got[1, :7].isnan().any()


def test_the_tolerance_notices_mistakes(ops: MixerOps) -> None:
    """Swapped directions, one wrong row, a missing skip or gate, or zeros all fail."""
    forward, backward = (direction(2, 63, 48) for _ in range(2))
    z = randn(2, 63, 48)
    expected = REFERENCE.scan(forward, backward, z)
    swapped_rows = expected.clone()
    swapped_rows[0, [10, 11]] = expected[0, [11, 10]]
    wrong = [
        ops.scan(backward, forward, z),
        ops.scan(replace(forward, D=0 * forward.D), backward, z),
        ops.scan(forward, backward, z.flip(1)),
        swapped_rows,
        torch.zeros_like(expected),
    ]
    for mistaken in wrong:
        assert relative_rms(mistaken, expected) > 100 * TOLERANCES[torch.float32]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("taps", [1, 3, 4, 7])
@pytest.mark.parametrize(("length", "channels"), [(1, 16), (2, 33), (63, 150), (197, 1)])
def test_conv_silu(ops: MixerOps, length: int, channels: int, taps: int, reverse: bool) -> None:
    x, _ = halves(2, length, channels, torch.float32)
    weight, bias = randn(channels, taps), randn(channels)
    got = ops.conv_silu(x, weight, bias, reverse=reverse)
    assert got.is_contiguous()
    assert_close(got, REFERENCE.conv_silu(x, weight, bias, reverse=reverse))


def test_conv_silu_of_large_values(ops: MixerOps) -> None:
    x = 1e3 * randn(1, 20, 32)
    weight, bias = randn(32, 4), randn(32)
    got = ops.conv_silu(x, weight, bias, reverse=False)
    assert_close(got, REFERENCE.conv_silu(x, weight, bias, reverse=False))


def test_conv_silu_notices_its_direction(ops: MixerOps) -> None:
    x, weight, bias = randn(1, 9, 16), randn(16, 4), randn(16)
    expected = REFERENCE.conv_silu(x, weight, bias, reverse=True)
    got = ops.conv_silu(x, weight, bias, reverse=False)
    assert relative_rms(got, expected) > 100 * TOLERANCES[torch.float32]


@pytest.mark.parametrize("width", [1, 16, 63, 192])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_add_norm(ops: MixerOps, width: int, first: bool, dtype: torch.dtype) -> None:
    hidden, weight = randn(3, 65, width, dtype=dtype), randn(width, dtype=dtype)
    residual = None if first else randn(3, 65, width)
    normed, stream = ops.add_norm(hidden, residual, weight, 1e-5)
    expected_normed, expected_stream = REFERENCE.add_norm(hidden, residual, weight, 1e-5)
    assert_close(normed, expected_normed)
    assert_close(stream, expected_stream)
    assert residual is None or stream.data_ptr() != residual.data_ptr()
