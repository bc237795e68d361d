"""Which forward a Vim gets: the fused one where it works, or another with the reason."""

from __future__ import annotations

import pytest
import torch

from support.fixtures_vim import load_fixture
from vim_embed import load_model
from vim_embed.kernels.fused.compile import CompileError
from vim_embed.kernels.select import BackendUnavailable
from vim_embed.models.vim import Vim, VimConfig
from vim_embed.weights import load
from vim_embed.weights.load import _choose

VIM = Vim(VimConfig(dim=32, depth=1, image_size=32))


@pytest.mark.parametrize(
    ("fault", "shown"),
    [
        (CompileError("vim.cu does not compile: line 7"), "line 7"),
        (torch.OutOfMemoryError("no room"), "no room"),
        (KeyError(), "KeyError"),
    ],
)
def test_a_failing_constructor(
    fault: Exception, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise fault

    monkeypatch.setattr(load, "supports", lambda *_: (True, "it should"))
    monkeypatch.setattr(load, "FusedVim", broken)
    # no kernels are called, so a device that is not there can be named
    chosen = _choose(VIM, "auto", torch.device("cuda"), torch.float16)
    assert (chosen.backend, chosen.fused) == ("torch", None)
    assert "several times slower" in chosen.reason
    assert f"{shown}; mamba_ssm: no CUDA device" in chosen.reason
    with pytest.raises(BackendUnavailable, match=f"fused: .*{shown}; use --backend auto"):
        _choose(VIM, "fused", torch.device("cuda"), torch.float16)


def test_a_failing_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refused:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        def __call__(self, pixels: torch.Tensor) -> None:
            raise RuntimeError("CUDA driver: too much shared memory")

        def give_up_clusters(self) -> bool:
            return False

    monkeypatch.setattr(load, "supports", lambda *_: (True, "it should"))
    monkeypatch.setattr(load, "FusedVim", Refused)
    chosen = _choose(VIM, "auto", torch.device("cuda"), torch.float16)
    assert chosen.backend == "torch"
    assert "fused: CUDA driver: too much shared memory" in chosen.reason
    with pytest.raises(BackendUnavailable, match="shared memory; use --backend auto"):
        _choose(VIM, "fused", torch.device("cuda"), torch.float16)


def test_a_device_that_takes_no_clusters_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    class Half:
        products = "half-precision products"
        device = torch.device("cpu")
        clusters = True

        def __init__(self, *_: object, **__: object) -> None:
            pass

        def __call__(self, pixels: torch.Tensor) -> None:
            if self.clusters:
                raise RuntimeError("CUDA driver: invalid cluster size")

        def give_up_clusters(self) -> bool:
            had, self.clusters = self.clusters, False
            return had

    monkeypatch.setattr(load, "supports", lambda *_: (True, "it should"))
    monkeypatch.setattr(load, "FusedVim", Half)
    chosen = _choose(VIM, "auto", torch.device("cuda"), torch.float16)
    assert chosen.backend == "fused"
    assert "without clusters of blocks (CUDA driver: invalid cluster size)" in chosen.reason


def test_an_unsupported_model_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "supports", lambda *_: (False, "d_state is 8, not 16"))
    chosen = _choose(VIM, "auto", torch.device("cuda"), torch.float16)
    assert "fused: d_state is 8, not 16" in chosen.reason


def test_fused_on_a_cpu_is_an_error() -> None:
    with pytest.raises(BackendUnavailable, match="need a CUDA device"):
        load_model("micro", load_fixture("vim_micro").path, device="cpu", backend="fused")
