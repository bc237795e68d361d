"""A bulk run that is killed goes on: complete, in order, nothing twice, in flat memory."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from vim_embed_client.bulk.checkpoint import folder_of
from vim_embed_client.scoring.embedding_files import read_embeddings

from .killing import VIM_EMBED, Attempt, attempt, stub_server
from .survey import SIZE, Array, expected, write_survey

MIB = 2**20


def check(output: Path, wanted: Iterator[tuple[list[str], Array]]) -> int:
    """Every row is there, in order, with its own embedding; returns how many."""
    written = read_embeddings(str(output))
    found, ids = written.embeddings, written.ids
    assert ids is not None
    start = 0
    for names, pixels in wanted:
        stop = start + len(names)
        assert ids[start:stop] == names
        np.testing.assert_array_equal(found[start:stop], expected(pixels))
        start = stop
    assert start == len(found) == len(ids) == len(set(ids))
    return start


def run_killed(folder: Path, rows: int, url: str, *options: str, ending: str = ".parquet") -> float:
    """Embed a survey of `rows`, killed twice at random; returns the seconds of all attempts."""
    wanted = list(write_survey(folder / "survey", rows))
    output = folder / f"out{ending}"
    parts = folder / f"out{ending}.parts"
    latest = min(int(rows * 0.85), rows - 2000)  # the kill comes a little later, before the end
    kills = sorted(random.randint(1, latest) for _ in range(2))
    print(f"killed after {kills} rows")
    started = time.monotonic()
    command = [VIM_EMBED, "embed", "--url", url, str(folder / "survey"), "-o", str(output)]
    command += ["--json", "--quiet", *options]
    for kill_at in kills:
        killed = attempt(command, parts, kill_at=kill_at)
        assert killed.code == -9, killed.output
        assert not output.exists()
    last = attempt(command, parts)
    seconds = time.monotonic() - started
    assert last.code == 0, last.output
    summary = json.loads(last.output)
    assert (summary["rows"], summary["skipped"]) == (rows, [])
    assert summary["resumed"] >= kills[1]
    assert check(output, iter(wanted)) == rows
    beside = [f"out{ending}.json"] if ending == ".npy" else []
    assert sorted(os.listdir(folder)) == [output.name, *beside, "survey"]
    return seconds


def peaks(done: Attempt, rows: int) -> list[int]:
    """Most bytes in memory in each tenth of a run of `rows`, counted by finished rows."""
    tenths: list[list[int]] = [[] for _ in range(10)]
    for finished, rss in done.memory:
        tenths[min(9, 10 * finished // rows)].append(rss)
    return [max(tenth, default=0) for tenth in tenths]


def run_whole(folder: Path, rows: int) -> tuple[Attempt, float]:
    """Embed a survey of `rows` in one go, watched from beginning to end."""
    folder.mkdir()
    wanted = list(write_survey(folder / "survey", rows))
    output = folder / "out.parquet"
    with stub_server(SIZE) as url:
        command = [VIM_EMBED, "embed", "--url", url, str(folder / "survey"), "-o", str(output)]
        started = time.monotonic()
        done = attempt([*command, "--quiet"], folder / "out.parquet.parts")
        seconds = time.monotonic() - started
    assert done.code == 0
    assert check(output, iter(wanted)) == rows
    return done, seconds


def test_3_000_rows_killed_twice(service_url: str, tmp_path: Path) -> None:
    run_killed(tmp_path, 3000, service_url, "--batch-rows", "16", "--part-rows", "200")


# Where an .npy and its sidecar may be torn is test_pairs.py's, kill by kill.
@pytest.mark.soak
@pytest.mark.parametrize("ending", [".npy", ".safetensors"])
def test_other_outputs_killed_twice(service_url: str, tmp_path: Path, ending: str) -> None:
    options = ("--batch-rows", "16", "--part-rows", "200")
    run_killed(tmp_path, 3000, service_url, *options, ending=ending)


@pytest.mark.parametrize("ending", [".parquet", pytest.param(".npz", marks=pytest.mark.soak)])
def test_layers_killed_twice_are_the_bytes_of_a_run_that_was_not(
    service_url: str, tmp_path: Path, ending: str
) -> None:
    list(write_survey(tmp_path / "survey", 1200))
    whole, killed = tmp_path / f"whole{ending}", tmp_path / f"killed{ending}"
    command = [VIM_EMBED, "embed", "--url", service_url, str(tmp_path / "survey"), "--quiet"]
    command += ["--layers", "blocks", "--batch-rows", "16", "--part-rows", "100", "-o"]
    for kill_at in (100, 500):
        done = attempt([*command, str(killed)], folder_of(killed), kill_at=kill_at)
        assert (done.code, killed.exists()) == (-9, False)
    assert attempt([*command, str(killed)], folder_of(killed)).code == 0
    assert attempt([*command, str(whole)], folder_of(whole)).code == 0
    assert killed.read_bytes() == whole.read_bytes()


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_100_000_rows_killed_twice_in_flat_memory(tmp_path: Path) -> None:
    rows = 100_000
    with stub_server(SIZE) as url:
        seconds = run_killed(tmp_path, rows, url)
    print(f"killed twice: {rows:,} rows in {seconds:.0f} s, complete, in order, none twice")
    shutil.rmtree(tmp_path / "survey")
    whole, seconds = run_whole(tmp_path / "whole", rows)
    highest = peaks(whole, rows)
    told = ", ".join(f"{peak / MIB:.0f}" for peak in highest)
    print(
        f"in one go: {rows:,} rows in {seconds:.0f} s, {rows / seconds:,.0f} rows/s\n"
        f"highest resident memory of each tenth, MiB: {told}"
    )
    assert max(highest) - highest[0] < 16 * MIB
