"""A HOME, a cache, a temporary folder or a /dev/shm that is missing, tiny or only to be read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest

from hostile.load import Load, png
from hostile.machine import in_namespace, may_unshare
from security.processes import server_process
from support.fixtures_vim import DATA
from support.server_process import server_process as real_server_process
from support.serving import NPY, npy

pytestmark = [
    pytest.mark.hostile,
    pytest.mark.skipif(not may_unshare(), reason="mounts of its own are not allowed here"),
]
PIXELS = np.random.default_rng(8).integers(0, 256, (2, 3, 64, 64), dtype=np.uint8)
READ_ONLY = "mount -t tmpfs tmpfs {0}; mount -o remount,ro {0}"
HOMES = {
    "missing": ("true", "/nonexistent/home"),
    "read-only": (READ_ONLY.format("/mnt"), "/mnt"),
    "full": ("mount -t tmpfs -o size=4k tmpfs /mnt; head -c 4096 /dev/zero > /mnt/x", "/mnt"),
    "a file": ("mount -t tmpfs tmpfs /mnt; touch /mnt/home", "/mnt/home"),
}


def environment(home: str) -> dict[str, str]:
    return {
        name: f"{home}/{name}"
        for name in (
            "XDG_CACHE_HOME",
            "XDG_CONFIG_HOME",
            "XDG_DATA_HOME",
            "HF_HOME",
            "MPLCONFIGDIR",
        )
    } | {"HOME": home, "HF_HUB_OFFLINE": "1"}


@pytest.mark.parametrize("home", HOMES)
def test_the_service_with_a_real_model(tmp_path: Path, home: str) -> None:
    """It starts, says what it cannot keep, and answers; arrays and images."""
    script, path = HOMES[home]
    flags = ("--model", f"micro={DATA / 'vim_micro.pth'}")
    with real_server_process(
        *flags, before=in_namespace(script), environment=environment(path)
    ) as server:
        url = server.url
        answer = httpx.post(f"{url}/embed", content=npy(PIXELS), headers=NPY, timeout=60)
        assert answer.status_code == 200, answer.text
        image = httpx.post(
            f"{url}/embed",
            content=png(PIXELS[0]),
            headers={"Content-Type": "image/png"},
            timeout=60,
        )
        assert image.status_code == 200, image.text


@pytest.mark.parametrize("home", HOMES)
def test_the_client_s_commands(tmp_path: Path, home: str) -> None:
    script, path = HOMES[home]
    source = tmp_path / "rows.npy"
    np.save(source, np.random.default_rng(9).integers(0, 256, (40, 3, 8, 8), dtype=np.uint8))
    output, figure = tmp_path / "out.npy", tmp_path / "map.png"
    with server_process(tmp_path) as server:
        for arguments in (
            ("embed", str(source), "-o", str(output), "--url", server.url),
            ("score", str(output), str(output)),
            ("map", str(output), "-o", str(figure)),
            ("models", "--url", server.url),
        ):
            run = subprocess.run(
                [*in_namespace(script), sys.executable, "-m", "vim_embed_client.cli", *arguments],
                capture_output=True, text=True, timeout=120,
                env={**os.environ, **environment(path)},
            )  # fmt: skip
            assert run.returncode == 0, (arguments, run.stderr)
            assert "Traceback" not in run.stderr
        assert len(np.load(output)) == 40
        assert figure.stat().st_size > 1000


SHMS = {
    "tiny": "mount -t tmpfs -o size=4k tmpfs /dev/shm; head -c 4096 /dev/zero > /dev/shm/x",
    "read-only": READ_ONLY.format("/dev/shm"),
    "none": "umount /dev/shm",
}


@pytest.mark.parametrize("shm", SHMS)
def test_shared_memory(tmp_path: Path, shm: str) -> None:
    """Bodies and pixels go through anonymous files, which lie in none of these folders."""
    with (
        server_process(tmp_path, "--http-processes", "2", before=in_namespace(SHMS[shm])) as server,
        Load(server.url) as load,
    ):
        load.more(50)
        load.only()
        large = np.zeros((64, 3, 224, 224), np.uint8)
        answer = httpx.post(f"{server.url}/embed", content=npy(large), headers=NPY, timeout=60)
        assert answer.status_code == 200


ALL_READ_ONLY = (
    READ_ONLY.format("/mnt")
    + """
for each in /tmp /var/tmp /usr/tmp; do
  [ ! -d $each ] || { mount --bind $each $each; mount -o remount,bind,ro $each; }
done
cd /mnt"""
)


def test_a_temporary_folder_that_may_only_be_read(tmp_path: Path) -> None:
    """One process needs none; several need a place for a socket, and say so."""
    places = {"TMPDIR": "/mnt"}
    in_mnt = in_namespace(READ_ONLY.format("/mnt"))
    with (
        server_process(tmp_path, before=in_mnt, environment=places) as server,
        Load(server.url) as load,
    ):
        load.more()
        load.only()
    run = subprocess.run(
        [*in_namespace(ALL_READ_ONLY), sys.executable, "-m", "vim_embed.cli", "serve",
         "--port", "0", "--device", "cpu", "--model", f"micro={DATA / 'vim_micro.pth'}",
         "--http-processes", "2"],
        capture_output=True, text=True, timeout=120, env={**os.environ, **places},
    )  # fmt: skip
    assert run.returncode == 2, run.stderr
    assert "TMPDIR" in run.stderr
    assert "Traceback" not in run.stderr
