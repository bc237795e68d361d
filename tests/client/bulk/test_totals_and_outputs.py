"""How many rows there will be, and outputs that are written block by block."""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from rich.console import Console
from safetensors import safe_open

from vim_embed_client.bulk import outputs
from vim_embed_client.bulk import row_counts as totals
from vim_embed_client.bulk.outputs import Contents, write_output
from vim_embed_client.bulk.pipeline import (
    Cursor,
    RowResult,
    digest_of,
    embedded_in_order,
    read_from,
)
from vim_embed_client.bulk.row_counts import Totals
from vim_embed_client.bulk.row_faults import Ready
from vim_embed_client.bulk.row_shape import EMBEDDING, vector
from vim_embed_client.bulk.run import BulkRun
from vim_embed_client.bulk.sources.reader import Item, Skipped
from vim_embed_client.bulk.sources.registry import ReadOptions, find_sources, open_reader
from vim_embed_client.bulk.waiting import Waiting
from vim_embed_client.cli import progress as cli_progress
from vim_embed_client.cli.progress import pace, showing_progress
from vim_embed_client.client import Client
from vim_embed_client.results import Embeddings, Provenance
from vim_embed_client.scoring.embedding_files import read_embeddings
from vim_embed_pixels.stretch import Stretch

from .survey import Array, pictures, write_images, write_npy, write_parquet, write_tar


def opened(source: str) -> Any:
    return open_reader(source, ReadOptions())


def test_rows_are_counted_where_that_is_cheap(tmp_path: Path) -> None:
    write_npy(tmp_path / "a", pictures(7))
    write_parquet(tmp_path / "b", pictures(5))
    write_images(tmp_path / "c", pictures(3))
    np.save(tmp_path / "d.npy", pictures(1)[0])
    assert Totals(find_sources([str(tmp_path)]), opened).rows() == 16


def test_rows_of_shards_are_estimated_from_those_read(tmp_path: Path) -> None:
    for number in range(4):
        write_tar(tmp_path / f"{number}", pictures(20, seed=number))
    write_npy(tmp_path / "a", pictures(6))
    sources = find_sources([str(tmp_path)])
    estimate = Totals(sources, opened)
    seen = [estimate.rows()]
    for done, (cursor, _) in enumerate(read_from(sources, opened, Cursor()), start=1):
        estimate.advance(cursor, done)
        seen.append(estimate.rows())
    assert seen[0] is None
    assert [rows for rows in seen if rows is not None] == pytest.approx([86] * 66, abs=3)
    resumed = Totals(sources, opened)
    resumed.advance(Cursor(2, 5), 45)
    assert resumed.rows() == pytest.approx(86, abs=3)


@pytest.mark.parametrize("row", range(0, 60, 7))
def test_reading_from_any_place_gives_the_rest_and_the_same_digests(
    tmp_path: Path, row: int
) -> None:
    write_tar(tmp_path / "b", pictures(20))
    write_npy(tmp_path / "a", pictures(20))
    write_parquet(tmp_path / "c", pictures(20))
    (tmp_path / "b2.tar").write_bytes(b"broken")
    sources = find_sources([str(tmp_path)])
    whole = list(read_from(sources, opened, Cursor()))
    assert len(whole) == 61
    cursor = whole[row][0]
    assert digest_of(sources, opened, cursor) == cursor.digest
    rest = list(read_from(sources, opened, cursor))
    assert [(p, entry.id) for p, entry in rest] == [(p, e.id) for p, e in whole[row + 1 :]]


def test_the_reader_never_runs_far_ahead_of_the_writer() -> None:
    """With the first answer held back, only so many rows are ever drawn."""
    drawn = 0
    provenance = Provenance(model="m")

    def entries() -> Iterator[tuple[Cursor, Item]]:
        nonlocal drawn
        for row in range(10_000):
            drawn += 1
            yield Cursor(0, row + 1), Item(id=f"{row}", data=b"x", size=1)

    class Numbering:
        """A row's embedding is the number in its bytes."""

        def ready(self, item: Item) -> Ready:
            return Ready(data=item.id.encode(), fingerprint=1)

        def send(self, rows: Sequence[Ready], *, give_up_on: Any = ()) -> Embeddings:
            numbers = np.array([[float(bytes(row.data))] for row in rows], np.float32)
            return Embeddings(embeddings=numbers, provenance=provenance)

        def probe(self, *, give_up_on: Any = ()) -> Embeddings:
            raise AssertionError("nothing fails here")

    most = 0
    taken: list[RowResult] = []
    for batch, _ in embedded_in_order(Numbering(), entries(), batch_rows=5, in_flight=3):
        taken += batch
        most = max(most, drawn - len(taken))
    assert [one.id for one in taken] == [f"{row}" for row in range(10_000)]
    assert all(
        float(one.row[0]) == i for i, one in enumerate(taken) if isinstance(one.row, np.ndarray)
    )
    assert most <= 5 * 3 * 4 + 5


def contents(rows: int, *, skips: int = 0) -> Contents:
    array = np.arange(rows * 3, dtype=np.float32).reshape(rows, 3)
    blocks = [
        (
            [f"ä{i}" for i in range(start, start + len(array[start : start + 4]))],
            {EMBEDDING: array[start : start + 4]},
        )
        for start in range(0, rows, 4)
    ]
    return Contents(
        rows=rows,
        shape=vector(3),
        dtype=array.dtype,
        provenance=Provenance(model="m"),
        blocks=lambda: iter(blocks),
        skipped=lambda: (Skipped(id=f"{i}", reason="no") for i in range(skips)),
    )


@pytest.mark.parametrize("ending", [".npy", ".npz", ".parquet", ".safetensors"])
def test_blocks_become_one_file(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"o{ending}"
    write_output(path, contents(10, skips=3))
    found = read_embeddings(str(path))
    assert found.ids == [f"ä{i}" for i in range(10)]
    np.testing.assert_array_equal(found.embeddings, np.arange(30).reshape(10, 3))


def test_long_lists_of_ids_go_beside_a_safetensors_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs, "_MAX_HEADER_IDS", 20)
    path = tmp_path / "o.safetensors"
    write_output(path, contents(10))
    with safe_open(path, "numpy") as file:
        assert "ids" not in file.metadata()
    assert read_embeddings(str(path)).ids == [f"ä{i}" for i in range(10)]


def test_many_skips_are_all_named_beside_the_file(tmp_path: Path) -> None:
    path = tmp_path / "o.npy"
    beside = tmp_path / "o.npy.skipped.jsonl"
    write_output(path, contents(2, skips=1500))
    about = json.loads((tmp_path / "o.npy.json").read_text())
    assert len(about["skipped"]) == 1000
    assert [json.loads(line)["id"] for line in beside.read_text().splitlines()] == [
        f"{i}" for i in range(1500)
    ]
    write_output(path, contents(2, skips=2))
    assert not beside.exists()


def test_progress_is_reported(service_url: str, tmp_path: Path) -> None:
    write_npy(tmp_path / "a", pictures(25))
    reported: list[tuple[int, int, int | None]] = []
    with Client(service_url) as client:
        run = BulkRun(
            client,
            [str(tmp_path / "a.npy")],
            tmp_path / "o.npy",
            batch_rows=10,
            on_progress=lambda *now: reported.append(now),
            model=None,
        )
        summary = run.run()
    assert reported == [(0, 0, 25), (10, 0, 25), (20, 0, 25), (25, 0, 25)]
    assert (summary.rows, summary.resumed) == (25, 0)


def test_names_that_are_no_utf_8_can_be_embedded(service_url: str, tmp_path: Path) -> None:
    from .survey import png

    name = str(tmp_path).encode() + b"/\xff.png"
    with open(name, "wb") as file:
        file.write(png(pictures(1)[0]))
    with Client(service_url) as client:
        output = tmp_path / "o.parquet"
        BulkRun(client, find_sources([str(tmp_path)]), output).run()
    found: Array = read_embeddings(str(output)).embeddings
    assert found.shape == (1, 8)
    assert read_embeddings(str(output)).ids == [f"{tmp_path}/\\xff.png"]


@pytest.mark.parametrize(
    ("progress", "line"),
    [
        ((0, 0, None, 0.0), "0 rows"),
        ((0, 0, 5000, 3.0), "0 of 5,000 rows"),
        ((1500, 0, None, 10.0), "1,500 rows · 150 rows/s"),
        ((1500, 1000, 3500, 10.0), "1,500 of 3,500 rows · 50.0 rows/s · 0:00:40 left"),
        ((90, 0, 80, 1.0), "90 of 90 rows · 90.0 rows/s · 0:00:00 left"),
    ],
)
def test_the_pace_as_far_as_it_can_be_said(progress: Any, line: str) -> None:
    assert pace(*progress) == line


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_shown_on_terminals_and_in_logs(
    monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    monkeypatch.setattr(cli_progress, "_LOG_EVERY_S", 0.0)
    written = io.StringIO()
    console = Console(file=written, force_terminal=terminal, width=120)
    with showing_progress(console, quiet=False) as report:
        report(30, 0, 100)
        time.sleep(0.2)
    assert "30 of 100 rows · " in written.getvalue()
    assert ("━" in written.getvalue()) == terminal


@pytest.mark.parametrize("width", [80, 120])
def test_the_progress_takes_one_line(width: int) -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=width)
    with showing_progress(console, quiet=False) as report:
        report(1_234_567, 0, 99_999_999)
        time.sleep(0.2)
    shown = [line for line in written.getvalue().split("\n") if "1,234,567" in line]
    assert shown
    assert all("1,234,567 of 99,999,999 rows · " in line and " left" in line for line in shown)


@pytest.mark.parametrize("ending", [".npy", ".parquet", ".safetensors"])
def test_the_options_of_a_run_are_in_its_output(
    service_url: str, tmp_path: Path, ending: str
) -> None:
    write_npy(tmp_path / "a", pictures(3))
    output = tmp_path / f"o{ending}"
    read_options = ReadOptions(resize=True, stretch=Stretch(bands=(3, 1, 0)))
    with Client(service_url) as client:
        source = str(tmp_path / "a.npy")
        BulkRun(client, [source], output, read_options=read_options, pooling="cls").run()
    if ending == ".npy":
        options = json.loads((tmp_path / "o.npy.json").read_text())["options"]
    elif ending == ".parquet":
        metadata = pyarrow.parquet.read_schema(output).metadata
        options = json.loads(metadata[b"vim_embed.options"])
    else:
        with safe_open(output, "numpy") as file:
            options = json.loads(file.metadata()["options"])
    assert (options["pooling"], options["resize"]) == ("cls", True)
    assert options["stretch"]["bands"] == [3, 1, 0]


def test_not_every_one_of_many_files_is_opened_to_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(totals, "_OPENED", 2)
    for number in range(5):
        write_npy(tmp_path / f"{number}", pictures(10))
    sources = find_sources([str(tmp_path)])
    counted = Totals(sources, opened)
    assert counted.rows() is None
    counted.advance(Cursor(1, 10), 20)
    assert counted.rows() is None
    counted.advance(Cursor(3, 1), 31)
    assert counted.rows() == 50


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_log_says_for_what_a_run_waits_while_nothing_finishes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cli_progress, "_LOG_EVERY_S", 0.01)
    monkeypatch.setattr(cli_progress, "_LEAST_S", 0.01)
    written, waiting = io.StringIO(), Waiting("the model")
    console = Console(file=written, force_terminal=False, width=120)
    with showing_progress(console, quiet=False, waiting=waiting) as report:
        _until(lambda: "0 rows · waiting for the model" in written.getvalue())
        report(30, 0, 100)
        with waiting.request(8), waiting.request(4):
            _until(lambda: "2 requests of 12 rows are under way" in written.getvalue())
        waiting.stage("the inputs to be read")
        _until(lambda: "waiting for the inputs to be read" in written.getvalue())
    told = [line for line in written.getvalue().splitlines() if "requests" in line]
    assert told[0].startswith("30 of 100 rows · ")
    assert re.search(r"the first for 0:00:\d\d$", told[0])


def test_a_run_tells_for_what_it_waits(service_url: str, tmp_path: Path) -> None:
    write_npy(tmp_path / "a", pictures(3))
    waiting, told = Waiting(), []

    class Watched(Client):
        def embed(self, *args: Any, **options: Any) -> Any:
            told.append(str(waiting))
            return super().embed(*args, **options)

    with Watched(service_url) as client:
        source = str(tmp_path / "a.npy")
        options = ReadOptions(resize=True, stretch=Stretch(bands=(3, 1, 0)))
        BulkRun(
            client, [source], tmp_path / "o.npy", read_options=options, batch_rows=2, in_flight=1,
            waiting=waiting,
        ).run()  # fmt: skip
    assert [re.sub(r"0:00:\d\d", "T", one) for one in told] == [
        "the service: 1 request of 2 rows is under way, the first for T",
        "the service: 1 request of 1 row is under way, the first for T",
    ]
    assert str(waiting) == "the output to be written"
