"""Compiling the kernels and keeping the result; no GPU needed."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from vim_embed.kernels.build_cache import CACHE_VARIABLE
from vim_embed.kernels.fused import compile as build
from vim_embed.kernels.fused.launch import SOURCE, Shape
from vim_embed.models.vim import VIM_CONFIGS, Vim, VimConfig
from vim_embed.models.vim_fused import FusedVim, supports

COMPILED = [
    Shape(192, 384, 12, torch.float16),
    Shape(768, 1536, 48, torch.bfloat16),
    Shape(32, 64, 2, torch.float16),
    Shape(384, 768, 24, torch.float32),
]


@pytest.mark.parametrize("shape", COMPILED)
def test_it_compiles_without_a_warning(shape: Shape, tmp_path: Path) -> None:
    compiler = shutil.which("nvcc")
    if compiler is None:
        pytest.skip("nvcc is not installed")
    macros = [f"-D{name}={value}" for name, value in shape.macros.items()]
    macros.append(f"-DOUT_NORM={int(shape.fuses_out)}")
    arch = "-arch=sm_90" + "a" * shape.fuses_out
    command = [compiler, arch, "-cubin", "-std=c++17", "--resource-usage", *macros]
    done = subprocess.run(
        [*command, str(SOURCE), "-o", str(tmp_path / "vim.cubin")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr


@pytest.fixture
def compiles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Replaces the compiler; the list grows by one a compilation."""
    calls: list[str] = []

    def compile_source(texts: Mapping[str, str], flags: list[str]) -> bytes:
        calls.append(next(iter(texts)))
        return b"code" + " ".join(flags).encode()

    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(build, "compile_source", compile_source)
    monkeypatch.setattr(build, "compiler_version", lambda: "13.0")
    return calls


def test_a_cubin_is_compiled_once(compiles: list[str]) -> None:
    first = build.cubin(SOURCE, {"DIM": 1}, "sm_90")
    assert build.cubin(SOURCE, {"DIM": 1}, "sm_90") == first
    assert len(compiles) == 1
    assert build.cubin(SOURCE, {"DIM": 2}, "sm_90") != first
    assert build.cubin(SOURCE, {"DIM": 1}, "sm_100") != first
    assert len(compiles) == 3


def test_another_compiler_compiles_again(
    compiles: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    build.cubin(SOURCE, {}, "sm_90")
    monkeypatch.setattr(build, "compiler_version", lambda: "13.1")
    build.cubin(SOURCE, {}, "sm_90")
    assert len(compiles) == 2


def test_a_damaged_file_is_replaced(compiles: list[str], tmp_path: Path) -> None:
    code = build.cubin(SOURCE, {}, "sm_90")
    (path,) = (tmp_path / "cache").glob("*.cubin")
    path.write_bytes(b"half")
    assert build.cubin(SOURCE, {}, "sm_90") == code
    assert len(compiles) == 2
    assert [p.read_bytes() for p in (tmp_path / "cache").iterdir()] == [code]


def test_a_cache_that_cannot_be_written_is_no_error(
    compiles: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file"))
    assert build.cubin(SOURCE, {}, "sm_90").startswith(b"code")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"d_state": 8}, "d_state is 8"),
        ({"d_conv": 3}, "d_conv is 3"),
        ({"dim": 48}, "inner width 96"),
        ({"dim": 192, "dt_rank": 80}, "rank 80"),
        ({"patch_size": 14}, "patch size 14"),
    ],
)
def test_unsupported_shapes_are_named(change: dict[str, int], reason: str) -> None:
    config = VimConfig(**{"dim": 64, "depth": 1, **change})
    works, why = supports(config, torch.float16, "cuda")
    assert not works
    assert reason in why


def test_unsupported_devices_and_dtypes_are_named() -> None:
    config = VIM_CONFIGS["vim-tiny"]
    assert "not cpu" in supports(config, torch.float16, "cpu")[1]
    assert "float64" in supports(config, torch.float64, "cuda")[1]
    with pytest.raises(ValueError, match="not cpu"):
        FusedVim(Vim(VimConfig(dim=64, depth=1)), torch.float16, "cpu")
