"""The memory that a process may have, as the system tells it."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from vim_embed.serving import memory_limit as module
from vim_embed.serving.memory_limit import inflight_bytes, log_memory, memory_limit
from vim_embed.settings import Settings

GIB = 1024**3
MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(module, "_OWN_GROUPS", tmp_path / "own")
    return tmp_path


def write(groups: Path, own: str, **limits: str) -> None:
    (groups / "own").write_text(own)
    for place, value in limits.items():
        path = groups / "cgroup" / place.replace("__", "/").replace("_max", ".max")
        path = path.with_name(path.name.replace("limit", "memory.limit_in_bytes"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value)


@pytest.mark.parametrize(
    ("own", "limits", "expected"),
    [
        ("0::/a/b\n", {"a__b__memory_max": "max", "a__memory_max": f"{2 * GIB}"}, 2 * GIB),
        ("0::/a\n", {"a__memory_max": f"{GIB}", "memory_max": f"{2 * GIB}"}, GIB),
        ("0::/\n", {"memory_max": f"{GIB}\n"}, GIB),
        ("4:memory:/x\n0::/\n", {"memory__x__limit": f"{GIB}"}, GIB),
        ("4:cpu,memory:/of/the/host\n", {"memory__limit": f"{GIB}"}, GIB),
        ("4:memory:/\n", {"memory__limit": "9223372036854771712"}, MACHINE),
        ("0::/gone\n", {}, MACHINE),
        ("", {}, MACHINE),
    ],
)
def test_control_groups(groups: Path, own: str, limits: dict[str, str], expected: int) -> None:
    write(groups, own, **limits)
    assert memory_limit() == expected


def test_a_container_of_two_gigabytes(groups: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    write(groups, "0::/\n", memory_max=f"{2 * GIB}")
    assert inflight_bytes(Settings()) == GIB
    assert inflight_bytes(Settings(inflight_bytes=7)) == 7
    log_memory(Settings(inflight_bytes=7))
    assert not caplog.records
    log_memory(Settings())
    log_memory(Settings(inflight_bytes=3 * GIB))
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]
    assert "--inflight-bytes" in caplog.text


def test_a_large_machine(groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sysconf", lambda name: 2**20)
    assert memory_limit() == 2**40
    assert inflight_bytes(Settings()) == 4 * GIB
