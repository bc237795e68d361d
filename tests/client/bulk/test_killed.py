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
import pyarrow.parquet
import pytest

from .killing import VIM_EMBED, Attempt, attempt, stub_server
from .survey import SIZE, Array, expected, write_survey

MIB = 2**20


def check(output: Path, wanted: Iterator[tuple[list[str], Array]]) -> int:
    """Every row is there, in order, with its own embedding; returns how many."""
    table = pyarrow.parquet.read_table(output)
    found = table["embedding"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
    ids = table["id"].to_pylist()
    start = 0
    for names, pixels in wanted:
        stop = start + len(names)
        assert ids[start:stop] == names
        np.testing.assert_array_equal(found[start:stop], expected(pixels))
        start = stop
    assert start == len(ids) == len(set(ids))
    return start


def run_killed(folder: Path, rows: int, *options: str) -> tuple[Attempt, list[int], float]:
    """Embed a survey of `rows`, killed twice; returns the last attempt and where it was killed."""
    wanted = list(write_survey(folder / "survey", rows))
    output = folder / "out.parquet"
    parts = folder / "out.parquet.parts"
    kills = sorted(random.randint(1, int(rows * 0.85)) for _ in range(2))
    print(f"killed after {kills} rows")
    started = time.monotonic()
    with stub_server(SIZE) as url:
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
    assert sorted(os.listdir(folder)) == ["out.parquet", "survey"]
    return last, kills, seconds


def peak_rss(done: Attempt, *, until: int) -> int:
    """Most bytes in memory while at most `until` rows were finished."""
    return max(rss for rows, rss in done.memory if rows <= until)


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


def test_3_000_rows_killed_twice(tmp_path: Path) -> None:
    run_killed(tmp_path, 3000, "--batch-rows", "16", "--part-rows", "200")


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_100_000_rows_killed_twice_in_flat_memory(tmp_path: Path) -> None:
    rows = 100_000
    _, _, seconds = run_killed(tmp_path, rows)
    print(f"killed twice: {rows:,} rows in {seconds:.0f} s, complete, in order, none twice")
    shutil.rmtree(tmp_path / "survey")
    whole, seconds = run_whole(tmp_path / "whole", rows)
    early, peak = peak_rss(whole, until=rows // 10), peak_rss(whole, until=rows)
    at_tenth = next(rss for done, rss in whole.memory if done >= rows // 10)
    at_end = [rss for _, rss in whole.memory if rss][-1]
    print(
        f"in one go: {rows:,} rows in {seconds:.0f} s, {rows / seconds:,.0f} rows/s\n"
        f"RSS at 10 %: {at_tenth / MIB:.1f} MiB (peak until then {early / MIB:.1f}), "
        f"at 100 %: {at_end / MIB:.1f} MiB (peak of all {peak / MIB:.1f})"
    )
    assert peak - early < 16 * MIB
