"""The choice of kernels and its reasons."""

from __future__ import annotations

import pytest
import torch

from vim_embed.kernels import mamba_ssm, select
from vim_embed.kernels.select import Backend, BackendUnavailable, select_backend

CPU = torch.device("cpu")


def test_unknown_backend_lists_the_known() -> None:
    with pytest.raises(
        BackendUnavailable,
        match="unknown backend 'nope': use one of auto, fused, cpu, mamba_ssm, torch",
    ):
        select_backend("nope", CPU, torch.float32)


@pytest.mark.parametrize("name", ["torch", "reference"])
def test_named_backend(name: str) -> None:
    chosen = select_backend(name, CPU, torch.float32)
    assert chosen.name == chosen.ops.name == name
    assert chosen.reason


def test_auto_on_a_cpu(has_cpu_kernels: bool) -> None:
    chosen = select_backend("auto", CPU, torch.float32)
    assert chosen.name == ("cpu" if has_cpu_kernels else "torch")


def test_chosen_once() -> None:
    assert select_backend("auto", CPU, torch.float32) is select_backend("auto", CPU, torch.float32)


def test_cpu_kernels_convert_other_dtypes_and_say_so(has_cpu_kernels: bool) -> None:
    if not has_cpu_kernels:
        pytest.skip("no C++ compiler here")
    chosen = select_backend("cpu", CPU, torch.bfloat16)
    assert "torch.bfloat16 converted to float32" in chosen.reason


def test_cpu_kernels_elsewhere_are_an_error() -> None:
    with pytest.raises(BackendUnavailable, match="use --device cpu"):
        select_backend("cpu", torch.device("meta"), torch.float32)


def test_auto_says_what_did_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(device: torch.device, dtype: torch.dtype) -> Backend:
        raise BackendUnavailable("cpu: out of order; repair it")

    monkeypatch.setitem(select.MAKERS, "cpu", broken)
    monkeypatch.setattr(select, "_made", select._made.__wrapped__)
    chosen = select_backend("auto", CPU, torch.float32)
    assert chosen.name == "torch"
    assert "cpu: out of order; repair it" in chosen.reason


def test_an_unlisted_device_runs_on_plain_torch() -> None:
    assert select_backend("auto", torch.device("meta"), torch.float32).name == "torch"


CUDA = torch.device("cuda")  # nothing is launched, so it need not be there


@pytest.fixture
def public(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the public kernels were installed."""
    monkeypatch.setattr(mamba_ssm, "supports", lambda *_: (True, "they load"))
    monkeypatch.setattr(select, "_made", select._made.__wrapped__)


def refused() -> str:
    raise BackendUnavailable("fused: too old a card")


@pytest.mark.usefixtures("public")
def test_auto_on_cuda_takes_the_fused_forward() -> None:
    chosen = select_backend("auto", CUDA, torch.float16, fused=lambda: "all in one")
    assert (chosen.name, chosen.reason, chosen.ops.name) == ("fused", "all in one", "torch")


@pytest.mark.usefixtures("public")
def test_auto_on_cuda_falls_back_to_the_public_kernels() -> None:
    chosen = select_backend("auto", CUDA, torch.float16, fused=refused)
    assert chosen.name == "mamba_ssm"
    assert chosen.reason.endswith("(unavailable: fused: too old a card)")


def test_auto_on_cuda_ends_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mamba_ssm, "supports", lambda *_: (False, "not installed"))
    chosen = select_backend("auto", CUDA, torch.float16, fused=refused)
    assert chosen.name == "torch"
    reasons = "(unavailable: fused: too old a card; mamba_ssm: not installed)"
    assert chosen.reason.endswith(reasons)


def test_fused_by_name_is_fused_or_an_error() -> None:
    with pytest.raises(BackendUnavailable, match="too old a card; use --backend auto"):
        select_backend("fused", CUDA, torch.float16, fused=refused)
    with pytest.raises(BackendUnavailable, match="a whole Vim"):
        select_backend("fused", CUDA, torch.float16)
