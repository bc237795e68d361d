"""Compiles a C++ source into a shared library once, and finds it again.

The libraries have a plain C interface: no Python or torch symbols, only torch's vector headers.
They are looked for in `_prebuilt/` beside this file (filled by `build` when an image or a package
is made) and in the per-user cache (kernels/build_cache.py), then compiled into the cache.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from vim_embed.kernels.build_cache import CACHE_VARIABLE, cache_dir, digest, intact, publish

PREBUILT_DIR = Path(__file__).parent / "_prebuilt"

_FLAGS = ("-std=c++20", "-O3", "-fPIC", "-shared", "-pthread", "-fno-math-errno", "-w")
_CAPABILITY_FLAGS = {
    "AVX512": (
        "-DCPU_CAPABILITY_AVX512",
        *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"),
    ),
    "AVX2": ("-DCPU_CAPABILITY_AVX2", "-mavx2", "-mfma", "-mf16c"),
    "DEFAULT": (),  # NEON on ARM, scalar code elsewhere
}
_COMPILE_TIMEOUT_S = 600


class NativeUnavailable(RuntimeError):
    """A native library cannot be had here; the message says why and names the fix."""


class CacheUnwritable(NativeUnavailable):
    """The library was compiled and cannot be kept: a full disk, or a read-only one."""


@dataclass(frozen=True)
class Loaded:
    """A loaded library and where it came from: "prebuilt", "cached", "compiled", or compiled and
    not kept, with the reason.
    """

    library: ctypes.CDLL
    path: Path
    origin: str


def load(source: Path) -> Loaded:
    """The library of `source` for this machine's CPU. Raises NativeUnavailable."""
    capability = cpu_capability()
    cache = cache_dir()
    compiler = find_compiler()
    prefix = _prefix(source, capability, torch.__version__)
    mine = prefix if compiler is None else f"{prefix}-{_compiler_key(compiler)}"
    shipped = _prefix(source, capability)
    for origin, directory, wanted in (("prebuilt", PREBUILT_DIR, shipped), ("cached", cache, mine)):
        for path in intact(directory, wanted, ".so"):
            with suppress(OSError):
                return Loaded(ctypes.CDLL(str(path)), path, origin)
    try:
        return _opened(build(source, capability, cache), "compiled")
    except CacheUnwritable as error:
        with tempfile.TemporaryDirectory(prefix="vim-embed-") as scratch:  # open files outlive it
            path = build(source, capability, Path(scratch))
            return _opened(path, f"compiled, not kept ({error})")


def join_torch_threads(library: ctypes.CDLL) -> None:
    """Hand over the fork-join function of torch's OpenMP pool, where torch has one.

    Without it the library starts threads of its own.
    """
    with suppress(OSError, AttributeError):
        torch_cpu = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        library.vim_set_fork_join(torch_cpu.GOMP_parallel)


def _opened(path: Path, origin: str) -> Loaded:
    try:
        return Loaded(ctypes.CDLL(str(path)), path, origin)
    except OSError as error:
        raise NativeUnavailable(f"the compiled {path.name} does not load: {error}") from error


def build(source: Path, capability: str, directory: Path) -> Path:
    """Compile `source` for a CPU capability into `directory`. Raises NativeUnavailable."""
    compiler = find_compiler()
    if compiler is None:
        raise NativeUnavailable(
            "no C++ compiler: install g++ or clang++, or set CXX, or ship a prebuilt library"
        )
    stem = f"{_prefix(source, capability, torch.__version__)}-{_compiler_key(compiler)}"
    return _built(source, capability, directory, stem, compiler)


def prebuild(source: Path, capability: str, directory: Path) -> Path:
    """`build`, to be shipped: the library serves every version of torch.

    It calls nothing of torch but the vectors of its headers, which are compiled in.
    """
    compiler = find_compiler()
    if compiler is None:
        raise NativeUnavailable("no C++ compiler to prebuild with: install g++, or set CXX")
    stem = f"{_prefix(source, capability)}-{_compiler_key(compiler)}"
    return _built(source, capability, directory, stem, compiler)


def _built(
    source: Path, capability: str, directory: Path, stem: str, compiler: tuple[str, ...]
) -> Path:
    with tempfile.TemporaryDirectory(prefix="vim-embed-") as scratch:
        compiled = Path(scratch) / "library.so"
        _compile([*compiler, *_flags(capability), str(source), "-o", str(compiled)])
        return _publish(compiled, directory, stem)


def cpu_capability() -> str:
    """What torch would use on this CPU, as a key of the flag table."""
    capability = torch.backends.cpu.get_cpu_capability()
    return capability if capability in _CAPABILITY_FLAGS else "DEFAULT"


def buildable_capabilities() -> tuple[str, ...]:
    """Every capability that this kind of machine can have: all that a prebuilt set needs."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return tuple(_CAPABILITY_FLAGS) if x86 else ("DEFAULT",)


def find_compiler() -> tuple[str, ...] | None:
    """The command of the C++ compiler: CXX, else the first of c++, g++, clang++ on PATH."""
    if chosen := shlex.split(os.environ.get("CXX", "")):
        return tuple(chosen) if shutil.which(chosen[0]) else None
    return next(((name,) for name in ("c++", "g++", "clang++") if shutil.which(name)), None)


def _flags(capability: str) -> tuple[str, ...]:
    include = Path(torch.__file__).parent / "include"
    own = (f"-DCPU_CAPABILITY={capability}", *_CAPABILITY_FLAGS[capability])
    return (*_FLAGS, *own, f"-I{include}")


def _prefix(source: Path, capability: str, headers: str = "") -> str:
    """All that determines the code but the compiler: source, flags, machine, and the version of
    torch's headers; without it, whatever version they are of.
    """
    flags = (*_FLAGS, *_CAPABILITY_FLAGS[capability])
    parts = (headers, platform.machine(), sys.platform, *flags)
    return f"{source.stem}-{capability.lower()}-{digest(source.read_bytes(), *parts)}"


def _compiler_key(compiler: tuple[str, ...]) -> str:
    try:
        version = subprocess.run(
            [*compiler, "--version"], capture_output=True, check=False, timeout=60
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        version = b""
    return digest(version, *compiler)[:8]


def _compile(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_COMPILE_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeUnavailable(f"{command[0]} did not run: {error}") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        first = next(
            (line for line in lines if "error" in line), lines[0] if lines else "no output"
        )
        raise NativeUnavailable(f"{command[0]} failed with status {done.returncode}: {first}")


def _publish(compiled: Path, directory: Path, stem: str) -> Path:
    """Keep a finished library in `directory`. Raises CacheUnwritable."""
    try:
        return publish(compiled.read_bytes(), directory, stem, ".so")
    except OSError as error:
        raise CacheUnwritable(
            f"{directory} cannot be written: {error.strerror}; set {CACHE_VARIABLE}"
        ) from error
