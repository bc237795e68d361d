"""How much memory this process may have, and how much of it bodies and answers get."""

from __future__ import annotations

import logging
import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

from vim_embed.settings import Settings

_LOG = logging.getLogger(__name__)
_MOST = 4 * 1024**3  # bytes for bodies and answers where the settings name none
_SHARE = 2  # of the memory, one part of so many; the rest is for models, batches and Python
_CGROUPS = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")


def inflight_bytes(settings: Settings) -> int:
    """The setting; without one 4 GiB, or half of the memory that there is if this is less."""
    return settings.inflight_bytes or min(_MOST, memory_limit() // _SHARE)


def memory_limit() -> int:
    """Bytes: of the machine, of this process's control groups, or of its address space; the least.

    On a system that tells none of these, a number beyond all machines.
    """
    return min([*_machine(), *_control_groups(), *_address_space()], default=2**63)


def log_memory(settings: Settings) -> None:
    """Say what bodies and answers may take, where it is not what one would expect."""
    most, limit = inflight_bytes(settings), memory_limit()
    fields = {"inflight_bytes": most, "memory_limit": limit}
    if most > limit:
        _LOG.warning(
            "bodies may take more memory than there is: lower --inflight-bytes", extra=fields
        )
    elif not settings.inflight_bytes and most < _MOST:
        _LOG.info("bodies and answers may take half of the memory", extra=fields)


def _machine() -> Iterator[int]:
    with suppress(ValueError, OSError, AttributeError):
        yield os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _control_groups() -> Iterator[int]:
    """Limits of this process's groups and of those above them, in both versions of cgroups.

    In a container the groups of /proc may be those of the host, and the container's own is where
    the file system begins.
    """
    with suppress(OSError):
        for line in _OWN_GROUPS.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                root, name = _CGROUPS, "memory.max"
            elif "memory" in controllers.split(","):
                root, name = _CGROUPS / "memory", "memory.limit_in_bytes"
            else:
                continue
            group = PurePosixPath(path.lstrip("/"))
            for place in (group, *group.parents):
                with suppress(OSError, ValueError):  # "max"
                    yield int((root / place / name).read_text())


def _address_space() -> Iterator[int]:
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        yield soft
