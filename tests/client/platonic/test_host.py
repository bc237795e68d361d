"""The real platonic-universe 0.1.0 from its console script on, our adapters, a real service."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from vim_embed_client import LocalServer

from .conftest import SIZES
from .host_runs import Host, finish

PRECOMPUTED = 32
ATOL = 1e-6
# Batches are alike in every run and no larger than the service's on a CPU: batches of other
# sizes alone move float32 sums by about 1e-6.
RUN = ("run", "--mode", "jwst", "--batch-size", "4", "--knn-k", "3")
ROWS = "vim_embed_rows_total"  # of the service's metrics
SURVEYS = {"jwst": 7, "legacysurvey": 8, "sdss": 8, "desi": 8}  # rows after the host's filter

Table = dict[str, NDArray[np.float32]]


def read_table(folder: Path, mode: str, alias: str) -> Table:
    """Columns of the host's parquet without the alias: `tiny_hsc` -> (rows, D)."""
    table = pq.read_table(folder / "data" / f"{mode}_{alias}.parquet")
    return {
        name.removeprefix(f"{alias}_"): np.stack([np.asarray(v) for v in table[name].to_pylist()])
        for name in table.column_names
    }


def read_scores(folder: Path, mode: str, alias: str) -> dict[str, str]:
    lines = (folder / "data" / f"{mode}_{alias}_mknn.txt").read_text().split()
    return dict(line.split(",") for line in lines)


def check_shapes(table: Table, mode: str) -> None:
    expected = {}
    for size, dim in SIZES.items():
        expected[f"{size}_hsc"] = (SURVEYS[mode], dim)
        second = PRECOMPUTED if mode in ("sdss", "desi") else dim
        expected[f"{size}_{mode}"] = (SURVEYS[mode], second)
    assert {name: column.shape for name, column in table.items()} == expected
    for name, column in table.items():
        assert len(np.unique(column, axis=0)) == len(column), f"{name} repeats rows"


def check_same(found: Table, expected: Table) -> None:
    assert found.keys() == expected.keys()
    for name, column in expected.items():
        np.testing.assert_allclose(found[name], column, rtol=0, atol=ATOL, err_msg=name)


@pytest.fixture(scope="module")
def in_process(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of `platonic_universe run --model vim --mode jwst`."""
    folder = tmp_path_factory.mktemp("vim")
    (folder / "data").mkdir()
    script = Path(sys.executable).with_name("platonic_universe")
    done = subprocess.run(
        [script, *RUN, "--model", "vim", "--num-workers", "1"],
        cwd=folder,
        env=host.environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "vim-base in this process" in done.stdout
    return folder


def test_vim_and_vim_remote_agree_on_jwst(
    host: Host, service: str, in_process: Path, tmp_path: Path
) -> None:
    output = finish(host.start(tmp_path, *RUN, "--model", "vim-remote", VIM_EMBED_URL=service))
    assert f"vim-base at {service}" in output
    expected = read_table(in_process, "jwst", "vim")
    check_shapes(expected, "jwst")
    check_same(read_table(tmp_path, "jwst", "vim-remote"), expected)
    scores = read_scores(tmp_path, "jwst", "vim-remote")
    assert scores == read_scores(in_process, "jwst", "vim")
    assert set(scores) == set(SIZES)


def test_what_computed_the_table_lies_beside_it(in_process: Path) -> None:
    sizes = json.loads((in_process / "data" / "jwst_vim.provenance.json").read_text())["sizes"]
    assert list(sizes) == list(SIZES)
    table = read_table(in_process, "jwst", "vim")
    for size, dim in SIZES.items():
        said = sizes[size]
        assert (said["model"], said["pooling"], said["dtype"]) == (f"vim-{size}", "mean", "float32")
        assert said["weights_digest"].startswith("sha256:")
        assert said["preprocessing_digest"].startswith("sha256:")
        assert {*said["columns"]} == {f"vim_{size}_{mode}" for mode in ("hsc", "jwst")}
        for name, column in said["columns"].items():
            rows = table[name.removeprefix("vim_")]
            digest = hashlib.sha256(np.ascontiguousarray(rows, "<f4").tobytes()).hexdigest()
            assert column == {"rows": SURVEYS["jwst"], "dim": dim, "sha256": digest}
    assert len({said["weights_digest"] for said in sizes.values()}) == len(SIZES)


def test_a_run_that_broke_off_costs_no_finished_row(
    host: Host, service: str, in_process: Path, tmp_path: Path
) -> None:
    """Killed in the third size, then run again: the first two sizes are not sent a second time."""
    cached = {"VIM_EMBED_URL": service, "VIM_EMBED_ROW_CACHE": str(tmp_path / "cache")}
    with host.start(tmp_path, *RUN, "--model", "vim-remote", **cached) as broken:
        for line in broken.stdout:
            if line.startswith("[vim-remote base]"):
                break
        broken.kill()
        assert broken.end()[0] == -signal.SIGKILL
    assert not list((tmp_path / "data").glob("*.parquet"))
    before = _served(service)
    finish(host.start(tmp_path, *RUN, "--model", "vim-remote", **cached))
    third = 2 * SURVEYS["jwst"]  # rows of both surveys
    blank = len(SIZES)  # images that ask for the provenance
    assert _served(service) - before <= third + blank
    check_same(read_table(tmp_path, "jwst", "vim-remote"), read_table(in_process, "jwst", "vim"))


def test_vim_and_vim_remote_agree_on_the_other_surveys(
    host: Host, service: str, tmp_path: Path
) -> None:
    code = (
        "import pu\n"
        "for mode in ('legacysurvey', 'sdss', 'desi'):\n"
        "    for alias in ('vim', 'vim-remote'):\n"
        "        pu.run_experiment(alias, mode, batch_size=8, num_workers=0, knn_k=3)\n"
    )
    finish(host.start_python(tmp_path, code, VIM_EMBED_URL=service))
    for mode in ("legacysurvey", "sdss", "desi"):
        expected = read_table(tmp_path, mode, "vim")
        check_shapes(expected, mode)
        check_same(read_table(tmp_path, mode, "vim-remote"), expected)
        assert read_scores(tmp_path, mode, "vim-remote") == read_scores(tmp_path, mode, "vim")


def test_a_killed_service_is_waited_for(
    host: Host, server: LocalServer, in_process: Path, tmp_path: Path
) -> None:
    before = _served(server.url)
    with host.start(tmp_path, *RUN, "--model", "vim-remote", VIM_EMBED_URL=server.url) as run:
        _wait_for_rows(server.url, before + 5)
        server._process.kill()
        server._process.wait()
        assert not run.has_ended()
        assert not list((tmp_path / "data").glob("*.parquet"))
        _restart(server)
        output = finish(run)
    assert f"{server.url} is away" in output
    check_same(read_table(tmp_path, "jwst", "vim-remote"), read_table(in_process, "jwst", "vim"))
    scores = read_scores(tmp_path, "jwst", "vim-remote")
    assert scores == read_scores(in_process, "jwst", "vim")


def _restart(server: LocalServer) -> None:
    """The same command once more, on the same port."""
    server._log.close()
    server.__enter__()


def _wait_for_rows(url: str, count: float) -> None:
    end = time.monotonic() + 120
    while _served(url) < count:
        assert time.monotonic() < end, "the run did not begin"
        time.sleep(0.02)


def _served(url: str) -> float:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(ROWS))


def test_a_run_without_a_service_fails_at_once(host: Host, tmp_path: Path) -> None:
    url = "http://127.0.0.1:9"
    with host.start(tmp_path, *RUN, "--model", "vim-remote", VIM_EMBED_URL=url) as run:
        code, output = run.end()
    assert code == 1
    assert f"no service at {url}" in output
    assert "vim-embed-server serve" in output
    assert not list((tmp_path / "data").iterdir())
