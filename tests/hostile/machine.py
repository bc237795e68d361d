"""Bounds of the machine that a test may set: disks, memory, mounts. Skips where it may not."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

_CGROUPS = Path("/sys/fs/cgroup")


def needs(*programs: str) -> pytest.MarkDecorator:
    """Skip without these programs."""
    missing = [each for each in programs if shutil.which(each) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


@contextmanager
def disk(folder: Path, options: str) -> Iterator[Path]:
    """A file system in memory at `folder`, such as `size=1m`. Skips where none may be mounted."""
    folder.mkdir(exist_ok=True)
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True
    )
    if made.returncode:
        pytest.skip(f"no file system may be mounted here: {made.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def in_namespace(script: str) -> Sequence[str]:
    """A command before another: mounts of its own, as the script makes them."""
    return ["unshare", "-m", "sh", "-ec", f'{script}\nexec "$@"', "sh"]


def may_unshare() -> bool:
    """Whether processes here may have mounts of their own."""
    made = subprocess.run(
        ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True
    )
    return made.returncode == 0


@contextmanager
def memory_group(size: int) -> Iterator[Path]:
    """A control group with so many bytes of memory; skips where none may be made."""
    v2 = (_CGROUPS / "cgroup.controllers").exists()
    root = _CGROUPS if v2 else _CGROUPS / "memory"
    group = root / f"vim-embed-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group may be made here: {error}")
    try:
        limit = group / ("memory.max" if v2 else "memory.limit_in_bytes")
        try:
            limit.write_text(str(size))
        except OSError as error:
            pytest.skip(f"control groups bound no memory here: {error}")
        yield group
    finally:
        end = time.monotonic() + 60
        while group.exists() and time.monotonic() < end:  # its last process may still be ending
            with suppress(OSError):
                group.rmdir()
                break
            time.sleep(0.1)


def in_group(group: Path) -> Sequence[str]:
    """A command before another, which then belongs to the group."""
    return ["sh", "-ec", f'echo $$ > {group}/cgroup.procs\nexec "$@"', "sh"]
