"""A disk that fills in the middle of anything, in the client and in the service."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from hostile.load import Load, png
from hostile.machine import disk, in_namespace, may_unshare
from security.processes import ServerProcess, server_process
from vim_embed_client.scoring.embedding_files import read_embeddings

pytestmark = pytest.mark.hostile
ROWS = 600
KIB = 1024
# Bytes of the disk, from nearly none to nearly enough: each run goes on from the one before.
STEPS = (8, 40, 200, 700, 1000, 1200, 1300, 1400, 2000, 2600, 4000)


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vim_embed_client.cli", *arguments],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    wide = {"STUB_WIDTH": "64"}  # 2 KiB a row
    with server_process(tmp_path_factory.mktemp("server"), environment=wide) as running:
        yield running


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "rows.npy"
    np.save(path, np.random.default_rng(5).integers(0, 256, (ROWS, 3, 8, 8), dtype=np.uint8))
    return path


@pytest.mark.parametrize("ending", [".npy", ".parquet", ".safetensors"])
@pytest.mark.timeout(600)
def test_embed_goes_on_when_there_is_room_again(
    server: ServerProcess, source: Path, tmp_path: Path, ending: str
) -> None:
    """Each run ends with one line that names the reason, and no row is lost or doubled."""
    arguments = ("embed", str(source), "--url", server.url)
    whole = tmp_path / f"whole{ending}"
    assert command(*arguments, "-o", str(whole)).returncode == 0
    with disk(tmp_path / "small", "size=8k") as small:
        output, failures = small / f"out{ending}", 0
        for size in STEPS:
            subprocess.run(["mount", "-o", f"remount,size={size}k", str(small)], check=True)
            run = command(*arguments, "-o", str(output))
            if run.returncode == 0:
                break
            failures += 1
            assert run.returncode == 1, run.stderr
            assert "Traceback" not in run.stderr
            assert "free space there" in run.stderr
            assert len(run.stderr.strip().splitlines()) <= 3
            assert not output.exists()  # whole or not there
        assert run.returncode == 0, run.stderr
        assert failures >= 3
        found, right = read_embeddings(str(output)), read_embeddings(str(whole))
        np.testing.assert_array_equal(found.embeddings, right.embeddings)
        assert found.ids == right.ids
        assert not (small / f"out{ending}.parts").exists()


@pytest.mark.parametrize("arguments", [("map", "-o", "map.png"), ("score", "--json")])
def test_figures_and_scores(
    server: ServerProcess, source: Path, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    embeddings = tmp_path / "embeddings.npy"
    assert command("embed", str(source), "--url", server.url, "-o", str(embeddings)).returncode == 0
    with disk(tmp_path / "small", "size=4k") as small:
        (small / "filler").write_bytes(bytes(4 * KIB))
        if arguments[0] == "map":
            run = command("map", str(embeddings), "-o", str(small / "map.png"))
        else:
            with (small / "out").open("w") as out:
                run = subprocess.run(
                    [sys.executable, "-m", "vim_embed_client.cli", "score", str(embeddings),
                     str(embeddings), "--json"],
                    stdout=out, stderr=subprocess.PIPE, text=True, timeout=120,
                )  # fmt: skip
        assert run.returncode == 1, run.stderr
        assert "Traceback" not in run.stderr
        assert "No space left" in run.stderr


def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    """Requests are answered as before."""
    with (
        disk(tmp_path / "small", "size=16k") as small,
        server_process(small, "--log-level", "debug") as server,
        Load(server.url) as load,
    ):
        load.more(200)
        load.only()
        assert small.joinpath(server.log.name).stat().st_size >= 12 * KIB


@pytest.mark.skipif(not may_unshare(), reason="mounts of its own are not allowed here")
@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_temporary_folder_that_is_full(tmp_path: Path, processes: str) -> None:
    """Nothing of a request lies there: forms of images of two megabytes are answered."""
    full = "mount -t tmpfs -o size=16k,mode=1777 tmpfs /var/tmp; mount --bind /var/tmp /tmp"
    filler = "mkdir -p /tmp/x; head -c 4096 /dev/zero > /tmp/x/filler || true"
    if str(tmp_path).startswith("/tmp"):
        full = full.replace("; mount --bind /var/tmp /tmp", "")
    environment = {"TMPDIR": "/var/tmp"}
    image = np.random.default_rng(6).integers(0, 256, (3, 900, 900), dtype=np.uint8)

    files = [("images", (f"{n}.png", png(image), "image/png")) for n in range(3)]
    before = in_namespace(f"{full}; {filler.replace('/tmp', '/var/tmp')}")
    flags = ("--http-processes", processes)
    with server_process(tmp_path, *flags, before=before, environment=environment) as server:
        answer = httpx.post(f"{server.url}/embed", files=files, timeout=60)
        assert answer.status_code == 200, answer.text
