"""Compiling the kernels and keeping the result; no GPU needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vim_embed.kernels.build_cache import CACHE_VARIABLE
from vim_embed.kernels.fused import compile as build
from vim_embed.kernels.fused import linear
from vim_embed.kernels.fused.device_code import Limits, architecture_of
from vim_embed.kernels.fused.program import (
    SCANS,
    SEGMENT_SCANS,
    SOURCE,
    XPROJ_CLUSTERS,
    Program,
    Shape,
)
from vim_embed.kernels.fused.split_mm import split_mm_tile
from vim_embed.models.vim import VIM_CONFIGS, Vim, VimConfig
from vim_embed.models.vim_fused import FusedVim
from vim_embed.models.vim_fused_support import supports

# Of each architecture, what a device of it has: from NVIDIA's table of compute capabilities.
DEVICES = {
    (8, 0): Limits((8, 0), 108, 163 * 1024),
    (8, 6): Limits((8, 6), 84, 99 * 1024),
    (8, 9): Limits((8, 9), 128, 99 * 1024),
    (9, 0): Limits((9, 0), 132, 227 * 1024),
    (10, 0): Limits((10, 0), 148, 227 * 1024),
    (10, 3): Limits((10, 3), 148, 227 * 1024),
    (12, 0): Limits((12, 0), 170, 99 * 1024),
    (12, 1): Limits((12, 1), 48, 99 * 1024),
}
SHAPES = {
    "float32": Shape(64, 128, 4, torch.float32, split=True),
    "float32-ieee": Shape(64, 128, 4, torch.float32),
    "float16": Shape(64, 128, 4, torch.float16),
    "bfloat16": Shape(64, 128, 4, torch.bfloat16),
}


# Whether a source compiles to machine code does not depend on how far the code is optimised.
QUICKLY = "--Ofast-compile=max"


def machine_code(program: Program, *flags: str) -> bytes:
    return code_of(SOURCE, program.macros, program.architecture, *flags)


def code_of(source: Path, macros: Mapping[str, int], architecture: str, *more: str) -> bytes:
    try:
        build.compiler_version()
    except build.CompileError as error:
        pytest.skip(str(error))
    flags = [f"-D{name}={value}" for name, value in macros.items()]
    flags += ["-std=c++17", "-default-device", f"--gpu-architecture={architecture}"]
    return build.compile_source(build.sources(source), [*flags, *more])


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("capability", DEVICES, ids=lambda c: f"{c[0]}.{c[1]}")
def test_it_compiles_for_every_architecture(capability: tuple[int, int], kind: str) -> None:
    """By NVRTC, to machine code; scripts/kernel_code.py does the same for the models' shapes, as
    the product's flags optimise them.
    """
    if kind == "bfloat16" and capability not in ((8, 0), (9, 0)):
        pytest.skip("it differs from float16 by the names of instructions")
    program = Program(SHAPES[kind], capability)
    assert machine_code(program, QUICKLY).startswith(b"\x7fELF")


@pytest.mark.parametrize("capability", DEVICES, ids=lambda c: f"{c[0]}.{c[1]}")
def test_linear_layers_compile_for_every_architecture(capability: tuple[int, int]) -> None:
    macros, architecture = (
        linear.macros_of(capability),
        architecture_of(capability, wgmma=capability[0] == 9),
    )
    code = code_of(linear.SOURCE, macros, architecture, QUICKLY)
    assert (b"split_mm_wgmma" in code) == (capability[0] == 9)


def test_hopper_has_a_kernel_more() -> None:
    """Compiled with the product's own flags."""
    program = Program(Shape(192, 384, 12, torch.float16), (9, 0))
    assert program.architecture == "sm_90a"
    assert b"out_norm" in machine_code(program)


@pytest.mark.parametrize("dim", [32, 64, 96, 192, 384, 768, 1024])
@pytest.mark.parametrize("limits", DEVICES.values(), ids=lambda x: f"{x.capability}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_shared_memory_fits(dim: int, dtype: torch.dtype, limits: Limits) -> None:
    """Whatever is chosen for one image or thousands fits the device's limit for one block."""
    shape = Shape(dim, 2 * dim, -(-dim // 16), dtype, split=dtype == torch.float32)
    program = Program(shape, limits.capability)
    sizes = [program.scan_memory(channels) for channels in SCANS]
    for rows in (1, 197, 2048, 6304, 12608, 25216, 100_000):
        for length in (1, 197):
            sizes.append(program.xproj_memory(*program.xproj_variant(rows, length, limits)))
        variant = program.segment_variant(-(-rows // 197), 197, limits)
        if variant is not None:
            sizes.append(program.segment_memory(variant[0], 40, variant[1]))
        sizes.append(split_mm_tile(rows, dim, 2 * dim // 32, limits).memory)
    if program.fuses_out:
        sizes.append(shape.out_memory)
    assert max(sizes) <= limits.shared_memory
    assert all(size % 16 == 0 for size in sizes)


def test_split_products_take_the_tile_that_suits() -> None:
    """wgmma for many rows on Hopper alone; small tiles where few rows would leave it idle."""
    hopper, ada = DEVICES[9, 0], DEVICES[8, 9]
    assert split_mm_tile(25216, 3072, 24, hopper).wgmma
    assert split_mm_tile(25216, 768, 48, hopper, add=True).wgmma
    assert not split_mm_tile(25216, 3072, 24, ada).wgmma
    assert split_mm_tile(25216, 1024, 32, hopper).wgmma  # the last of its columns stay unused
    one_image = split_mm_tile(197, 768, 6, hopper)
    assert not one_image.wgmma
    assert one_image.count(197, 768) >= hopper.multiprocessors


def test_few_images_take_more_of_a_device() -> None:
    """One image of vim-tiny goes by small blocks, of vim-small by larger ones, four by neither."""
    hopper, ampere = DEVICES[9, 0], DEVICES[8, 0]
    tiny, small, base = (
        Program(Shape(dim, 2 * dim, dim // 16, torch.float16), (9, 0)) for dim in (192, 384, 768)
    )
    assert tiny.segment_variant(1, 197, hopper) == (4, 5)
    assert tiny.segment_variant(2, 197, hopper) == small.segment_variant(1, 197, hopper) == (8, 5)
    assert base.segment_variant(1, 197, hopper) is None
    assert tiny.segment_variant(4, 197, hopper) is None
    assert tiny.segment_variant(1, 50, hopper) is None, "segments too short to pay"
    assert tiny.segment_variant(1, 6085, hopper) is None, "more than fits shared memory"
    assert [tiny.xproj_variant(n * 197, 197, hopper)[3] for n in (1, 2, 4, 8)] == [3, 3, 1, 1]
    assert [base.xproj_variant(n * 197, 197, hopper)[3] for n in (1, 2, 4, 8)] == [6, 3, 3, 1]
    joined = [[p.has_out_in(n * 197, hopper) for n in (1, 2, 3, 4)] for p in (tiny, small, base)]
    assert joined == [[True, True, True, False], [True, False, False, False], [False] * 4]
    split = Program(Shape(192, 384, 12, torch.float32, split=True), (9, 0))
    assert [split.has_out_in(n * 197, hopper) for n in (1, 2)] == [True, False]
    without = replace(hopper, clusters=False)
    assert base.xproj_variant(197, 197, without)[3] == 1
    assert not tiny.has_out_in(197, without)
    assert not replace(tiny, capability=(8, 0)).has_out_in(197, ampere)
    older = replace(base, capability=(8, 0))
    assert older.xproj_variant(197, 197, ampere)[3] == 1


@pytest.mark.parametrize("capability", [(8, 0), (9, 0)])
def test_clusters_and_segments_are_compiled(capability: tuple[int, int]) -> None:
    for dtype in (torch.float16, torch.float32):
        shape = Shape(384, 768, 24, dtype, split=dtype == torch.float32)
        code = machine_code(Program(shape, capability), QUICKLY)
        names = [f"segment_scan_{channels}" for channels in SEGMENT_SCANS]
        assert all(name.encode() in code for name in names)
        clusters = [f"xproj_114_{blocks}".encode() in code for blocks in XPROJ_CLUSTERS]
        clusters.append(b"out_in" in code)
        assert all(clusters) if capability == (9, 0) else not any(clusters)


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
    first = build.compiled(SOURCE, {"DIM": 1}, "sm_90")
    assert build.compiled(SOURCE, {"DIM": 1}, "sm_90") == first
    assert len(compiles) == 1
    assert build.compiled(SOURCE, {"DIM": 2}, "sm_90") != first
    assert build.compiled(SOURCE, {"DIM": 1}, "sm_100") != first
    assert len(compiles) == 3


def test_another_compiler_compiles_again(
    compiles: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    build.compiled(SOURCE, {}, "sm_90")
    monkeypatch.setattr(build, "compiler_version", lambda: "13.1")
    build.compiled(SOURCE, {}, "sm_90")
    assert len(compiles) == 2


def test_a_damaged_file_is_replaced(compiles: list[str], tmp_path: Path) -> None:
    code = build.compiled(SOURCE, {}, "sm_90")
    (path,) = (tmp_path / "cache").glob("*.cubin")
    path.write_bytes(b"half")
    assert build.compiled(SOURCE, {}, "sm_90") == code
    assert len(compiles) == 2
    assert [p.read_bytes() for p in (tmp_path / "cache").iterdir()] == [code]


def test_a_cache_that_cannot_be_written_is_no_error(
    compiles: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file"))
    assert build.compiled(SOURCE, {}, "sm_90").startswith(b"code")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"d_state": 8}, "d_state is 8"),
        ({"d_conv": 3}, "d_conv is 3"),
        ({"dim": 48}, "inner width 96"),
        ({"dim": 192, "dt_rank": 80}, "rank 80"),
        ({"patch_size": 14}, "patch size 14"),
        ({"channels": 5}, "5 channels"),
        ({"rope": True}, "rotated"),
        ({"mixer_norm": True}, "norm of its own"),
    ],
)
def test_unsupported_shapes_are_named(change: dict[str, Any], reason: str) -> None:
    config = replace(VimConfig(dim=64, depth=1), **change)
    works, why = supports(config, torch.float16, "cuda")
    assert not works
    assert reason in why


def test_unsupported_devices_and_dtypes_are_named() -> None:
    config = VIM_CONFIGS["vim-tiny"]
    assert "not cpu" in supports(config, torch.float16, "cpu")[1]
    assert "float64" in supports(config, torch.float64, "cuda")[1]
    with pytest.raises(ValueError, match="not cpu"):
        FusedVim(Vim(VimConfig(dim=64, depth=1)), torch.float16, "cpu")


def test_long_products_of_few_rows_go_in_parts() -> None:
    """As many as keep the device busy, on Hopper; none where tiles do, or lengths are short."""
    hopper, ada = DEVICES[9, 0], DEVICES[8, 9]
    tile = split_mm_tile(197, 768, 96, hopper)
    assert tile.wgmma
    assert tile.parts(197, 768, 96, hopper) * tile.count(197, 768) == 128
    assert tile.parts(25216, 768, 96, hopper) == 1
    assert tile.parts(197, 768, 12, hopper) == 1
    assert not split_mm_tile(197, 768, 96, ada).wgmma
