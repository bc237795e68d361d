"""Building, caching and finding the native library, and the ways in which that can fail."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vim_embed.kernels import build_cache, select
from vim_embed.kernels.cpu import compile as native
from vim_embed.kernels.cpu import ops as cpu
from vim_embed.kernels.cpu.compile import NativeUnavailable
from vim_embed.kernels.ops import Direction

# What the suite has compiled by now; each test but few has a cache of its own.
SHARED_CACHE = str(build_cache.cache_dir())
needs_compiler = pytest.mark.skipif(native.find_compiler() is None, reason="no C++ compiler here")

USE_PREBUILT = """
import sys
from pathlib import Path
from vim_embed.kernels.cpu import compile
from vim_embed.kernels.cpu.ops import CpuOps, self_test
compile.PREBUILT_DIR = Path(sys.argv[1])
ops = CpuOps()
self_test(ops)
print(ops.origin)
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "cache"
    monkeypatch.setenv(build_cache.CACHE_VARIABLE, str(directory))
    monkeypatch.setattr(native, "PREBUILT_DIR", tmp_path / "prebuilt")
    return directory


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "answer.cpp"
    path.write_text('extern "C" int answer() { return 42; }')
    return path


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)


@pytest.fixture
def nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has not chosen yet."""
    monkeypatch.setattr(cpu, "_library", cpu._library.__wrapped__)
    monkeypatch.setattr(select, "_made", select._made.__wrapped__)


@needs_compiler
def test_compiled_once_then_cached(source: Path, cache: Path) -> None:
    first, second = native.load(source), native.load(source)
    assert (first.origin, second.origin) == ("compiled", "cached")
    assert second.library.answer() == 42
    assert [path.suffix for path in cache.iterdir()] == [".so"]


@needs_compiler
def test_another_source_is_another_library(source: Path) -> None:
    native.load(source)
    source.write_text('extern "C" int answer() { return 43; }')
    again = native.load(source)
    assert (again.origin, again.library.answer()) == ("compiled", 43)


@needs_compiler
@pytest.mark.parametrize("damage", ["empty", "half", "other"])
def test_broken_cache_entry_is_rebuilt(source: Path, cache: Path, damage: str) -> None:
    path = native.build(source, native.cpu_capability(), cache)
    content = path.read_bytes()
    broken = {"empty": b"", "half": content[: len(content) // 2], "other": b"x" + content}[damage]
    path.write_bytes(broken)
    again = native.load(source)
    assert (again.origin, again.library.answer()) == ("compiled", 42)
    assert path.read_bytes() == content


@needs_compiler
def test_cached_library_needs_no_compiler(
    source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    native.load(source)
    monkeypatch.setenv("PATH", "")
    assert native.load(source).origin == "cached"


@needs_compiler
def test_prebuilt_library_needs_no_compiler(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    native.prebuild(source, native.cpu_capability(), native.PREBUILT_DIR)
    monkeypatch.setenv("PATH", "")
    assert native.load(source).origin == "prebuilt"
    monkeypatch.setattr(torch, "__version__", "2.9.0")
    assert native.load(source).origin == "prebuilt"


@needs_compiler
def test_failing_compile_says_why(source: Path) -> None:
    source.write_text("this is not C++")
    with pytest.raises(NativeUnavailable, match=r"failed with status 1: .*error"):
        native.load(source)


def test_failing_compiler_says_which(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "false -v")
    with pytest.raises(NativeUnavailable, match="false failed with status 1"):
        native.load(source)


@needs_compiler
def test_unwritable_cache_costs_a_compilation_and_says_so(source: Path, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    loaded = native.load(source)
    assert loaded.library.answer() == 42
    assert loaded.origin.startswith("compiled, not kept")
    assert build_cache.CACHE_VARIABLE in loaded.origin


@needs_compiler
def test_a_full_disk_costs_a_compilation_and_leaves_nothing(
    source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_bytes

    def write_bytes(path: Path, content: bytes) -> int:
        if path.is_relative_to(cache):
            write(path, content[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    loaded = native.load(source)
    assert loaded.library.answer() == 42
    assert "No space left on device" in loaded.origin
    assert not list(cache.iterdir())


@pytest.mark.usefixtures("no_compiler", "nothing_chosen")
def test_without_a_compiler_auto_falls_back_and_says_why() -> None:
    chosen = select.select_backend("auto", torch.device("cpu"), torch.float32)
    assert chosen.name == "torch"
    assert "no C++ compiler: install g++" in chosen.reason


@pytest.mark.usefixtures("no_compiler", "nothing_chosen")
def test_without_a_compiler_the_explicit_choice_is_an_error() -> None:
    with pytest.raises(select.BackendUnavailable, match="install g\\+\\+ or clang\\+\\+"):
        select.select_backend("cpu", torch.device("cpu"), torch.float32)


@needs_compiler
@pytest.mark.usefixtures("nothing_chosen")
def test_a_library_that_computes_wrongly_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(build_cache.CACHE_VARIABLE, SHARED_CACHE)

    def zeros(ops: cpu.CpuOps, forward: Direction, backward: Direction, z: Tensor) -> Tensor:
        return torch.zeros_like(z)

    monkeypatch.setattr(cpu.CpuOps, "scan", zeros)
    chosen = select.select_backend("auto", torch.device("cpu"), torch.float32)
    assert chosen.name == "torch"
    assert "failed its self-test" in chosen.reason


@needs_compiler
def test_concurrent_first_use(source: Path, cache: Path) -> None:
    """By threads, which begin together: there is no lock between them, as between processes."""
    together = threading.Barrier(4)

    def first_use() -> tuple[str, int]:
        together.wait(60)
        loaded = native.load(source)
        return loaded.origin, loaded.library.answer()

    with ThreadPoolExecutor(4) as pool:
        found = [each.result() for each in [pool.submit(first_use) for _ in range(4)]]
    assert {answer for _, answer in found} == {42}
    assert "compiled" in {origin for origin, _ in found}
    assert {path.suffix for path in cache.iterdir()} == {".so"}


@needs_compiler
def test_prebuilt_libraries_of_every_cpu(tmp_path: Path) -> None:
    """Each computes right in a process that has that CPU, or does as if, and compiles nothing.

    AVX512 is what the other tests compile where a machine has it.
    """
    assert native.cpu_capability() in native.buildable_capabilities()
    capabilities = [each for each in native.buildable_capabilities() if each != "AVX512"]
    out = tmp_path / "out"
    paths = cpu.prebuild(out, capabilities)
    assert {path.parent for path in paths} == {out}
    kinds = [path.name.split("-")[:2] for path in paths]
    assert sorted(kinds) == sorted(
        [library, capability.lower()]
        for library in ("cpu", "host_copy")
        for capability in capabilities
    )
    assert out.stat().st_mode & 0o055 == 0o055  # every user of an image reads it
    command = [sys.executable, "-c", USE_PREBUILT, str(out)]
    for capability in capabilities:
        chosen = os.environ | {"ATEN_CPU_CAPABILITY": capability.lower()}
        used = subprocess.run(command, env=chosen, capture_output=True, text=True, check=True)
        assert used.stdout.strip() == "prebuilt"


def test_cache_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(build_cache.CACHE_VARIABLE, str(tmp_path))
    assert build_cache.cache_dir() == tmp_path
    monkeypatch.delenv(build_cache.CACHE_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if sys.platform != "darwin":
        assert build_cache.cache_dir() == tmp_path / "vim-embed"
