"""Every row is embedded as what it is, or named; what one row does never hurts the others."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vim_embed_client.bulk.reasons import Reasons
from vim_embed_client.cli.main import run
from vim_embed_client.scoring.embedding_files import read_embeddings

from ..fake_service import SIZE, FakeService, embed_rows, refuse

ROWS = 12


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    pixels = np.random.default_rng(0).standard_normal((ROWS, 3, SIZE, SIZE)).astype("f4")
    np.save(folder / "a.npy", pixels)
    return folder


@pytest.fixture
def embed(url: str, folder: Path, tmp_path: Path) -> Callable[..., int]:
    start = ["embed", "--url", url, str(folder), "-o", str(tmp_path / "o.npy"), "--json"]
    return lambda *args: run([*start, *map(str, args)])


def summary(capsys: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def poison(folder: Path, rows: tuple[int, ...], code: int, name: str) -> Any:
    """A fault of the service for requests that hold one of these rows."""
    pixels = np.load(folder / "a.npy")
    needles = [pixels[row].tobytes() for row in rows]

    async def fail(service: FakeService, request: Any) -> Any:
        body = await request.body()
        if any(needle in body for needle in needles):
            return await refuse(code, name, "the model gave NaN for these pixels")(service, request)
        return None

    return fail


@pytest.mark.parametrize(
    ("code", "name"),
    [(500, "internal_error"), (504, "deadline_exceeded"), (422, "invalid_input")],
)
@pytest.mark.parametrize("rows", [(5,), (0, 11), (3, 4)])
def test_rows_that_make_the_service_fail_are_skipped_and_no_other(
    embed: Any, folder: Path, tmp_path: Path, service: FakeService, capsys: Any,
    rows: tuple[int, ...], code: int, name: str,
) -> None:  # fmt: skip
    service.always = poison(folder, rows, code, name)
    assert embed("--on-error", "skip") == 5
    found = summary(capsys)
    assert [one["id"] for one in found["skipped"]] == [f"{folder}/a.npy#{row}" for row in rows]
    assert all("the model gave NaN" in one["reason"] for one in found["skipped"])
    kept = [row for row in range(ROWS) if row not in rows]
    written = read_embeddings(str(tmp_path / "o.npy"))
    assert written.ids == [f"{folder}/a.npy#{row}" for row in kept]
    np.testing.assert_array_equal(
        written.embeddings, embed_rows(np.load(folder / "a.npy")[kept])
    )  # fmt: skip
    assert len(service.seen) < 25  # it was looked for, and not waited for


def test_a_row_that_makes_the_service_fail_ends_the_run_by_its_name(
    embed: Any, folder: Path, service: FakeService, capsys: Any
) -> None:
    service.always = poison(folder, (7,), 500, "internal_error")
    assert embed() == 1
    assert f"Error: {folder}/a.npy#7: the service fails on this row" in capsys.readouterr().err
    assert len(service.seen) < 15


def test_a_failure_that_passes_is_no_row_s_fault(
    embed: Any, folder: Path, service: FakeService, capsys: Any
) -> None:
    service.faults.extend([refuse(500, "internal_error")] * 4)
    assert embed("--on-error", "skip", "--in-flight", 1) == 0
    assert summary(capsys)["skipped_count"] == 0


def test_pipes_devices_and_sockets_are_named_and_never_opened(
    embed: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(folder)  # names of sockets are short
    for name in ("x.png", "x.npy", "x.fits", "x.tar", "x.parquet"):
        os.mkfifo(folder / name)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("s.png")
        (folder / "null.png").symlink_to("/dev/null")
        assert embed("--on-error", "skip") == 5
    found = {Path(one["id"]).name: one["reason"] for one in summary(capsys)["skipped"]}
    assert found.keys() == {"x.png", "x.npy", "x.fits", "x.tar", "x.parquet", "s.png", "null.png"}
    assert "is a pipe and no file" in found["x.npy"]
    assert "is a socket" in found["s.png"]
    assert "is a device" in found["null.png"]
    assert len(np.load(tmp_path / "o.npy")) == ROWS


def test_the_last_line_and_the_metadata_count_everything(
    embed: Any, folder: Path, tmp_path: Path, capsys: Any
) -> None:
    for number in range(3):
        (folder / f"bad{number}.png").write_text("no image")
    np.save(folder / "b.npy", np.zeros((4, 4), "f4"))
    for name in ("a.txt", "b.txt", "c.csv"):
        (folder / name).touch()
    assert embed("--on-error", "skip") == 5
    captured = capsys.readouterr()
    last = captured.err.splitlines()[-1]
    assert last.startswith(f"{ROWS} rows × 6 from vim-tiny -> ")
    assert "); 4 skipped (3: " in last
    assert "; 1: it is too flat to stretch" in last
    assert last.endswith("3 passed over (2: .txt files are not read; 1: .csv files are not read)")
    about = json.loads((tmp_path / "o.npy.json").read_text())["summary"]
    assert (about["rows"], about["skipped"], about["passed_over"]) == (ROWS, 4, 3)
    assert [group["count"] for group in about["skipped_reasons"]] == [3, 1]
    assert about["passed_over_reasons"][0] == {
        "reason": ".txt files are not read",
        "count": 2,
        "first": [f"{folder}/a.txt", f"{folder}/b.txt"],
    }
    found = json.loads(captured.out)
    assert found["passed_over_count"] == 3
    assert found["skipped_reasons"] == about["skipped_reasons"]


def test_passed_over_files_alone_are_no_failure(embed: Any, folder: Path) -> None:
    (folder / "notes.txt").touch()
    assert embed() == 0


def test_rows_with_the_same_input_are_named(
    embed: Any, folder: Path, tmp_path: Path, capsys: Any
) -> None:
    pixels = np.load(folder / "a.npy")
    pixels[4] = pixels[9]
    np.save(folder / "a.npy", pixels)
    picture = Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
    for name in ("x.png", "y.png", "z.png"):
        picture.save(folder / name)
    picture.rotate(90).save(folder / "other.png")
    assert embed() == 0
    captured = capsys.readouterr()
    groups = [
        {"count": 2, "ids": [f"{folder}/a.npy#4", f"{folder}/a.npy#9"]},
        {"count": 3, "ids": [f"{folder}/{name}.png" for name in "xyz"]},
    ]
    assert json.loads(captured.out)["identical"] == {"rows": 5, "groups": groups}
    about = json.loads((tmp_path / "o.npy.json").read_text())
    assert about["summary"]["identical"] == {"rows": 5, "groups": groups}
    assert "5 rows have the very input of another row" in captured.err


def test_floats_that_do_not_look_normalised_are_named_with_the_fix(
    embed: Any, folder: Path, capsys: Any
) -> None:
    np.save(folder / "b.npy", np.random.default_rng(1).random((2, 3, SIZE, SIZE)))
    assert embed() == 0
    captured = capsys.readouterr()
    (note,) = json.loads(captured.out)["notes"]
    assert (note["count"], note["first"]) == (2, [f"{folder}/b.npy#0", f"{folder}/b.npy#1"])
    assert "floats from 0 to 1 were taken as normalised" in note["reason"]
    assert "numpy.rint(255 * pixels)" in captured.err


def test_reasons_that_differ_in_numbers_and_names_are_one() -> None:
    reasons = Reasons()
    for row in range(30):
        reasons.add(f"f/{row}.png", f"{row * 7} fluxes of f/{row}.png are NaN: give --blank")
    reasons.add("g", "g is empty")
    again = Reasons(reasons.as_json())
    assert [(group.count, group.reason) for group in again] == [
        (30, "0 to 203 fluxes of it are NaN: give --blank"), (1, "g is empty"),
    ]  # fmt: skip
    assert [len(group.first) for group in again] == [10, 1]
    for number in range(500):
        again.add("x", "reason " + "i" * number)
    assert len(list(again)) <= 101
    assert again.count == 531
    assert "other reasons" in [group.reason for group in again]


@pytest.mark.parametrize(
    ("reasons", "told"),
    [
        (["29.2% off, 0.0% masked", "7.5% off, 0.0% masked", "61% off, 0.0% masked"],
         "7.5 to 61% off, 0.0% masked"),
        (["Dec -2.5", "Dec -3.5", "Dec 1"], "Dec -3.5 to 1"),
        (["a shape (3, 9, 20)", "a shape (3, 24, 8)"], "a shape (3, 9 to 24, 8 to 20)"),
        (["RA -180 to 360 degrees"] * 3, "RA -180 to 360 degrees"),
        (["of 5", "of 5"], "of 5"),
        (["value 1e-5", "value 2e+3"], "value 1e-5 to 2e+3"),
        (["at 0x1f", "at 0xa"], "at 0xa to 0x1f"),
    ],
)  # fmt: skip
def test_numbers_of_a_group_are_those_of_all(reasons: list[str], told: str) -> None:
    for order in (reasons, reasons[::-1]):
        found = Reasons()
        for row, reason in enumerate(order):
            found.add(str(row), reason)
        (group,) = Reasons([*found.as_json(), *found.as_json()])
        assert (group.count, group.reason) == (2 * len(reasons), told)


def test_reasons_that_differ_in_names_alone_are_said_of_all() -> None:
    reasons = Reasons()
    for name in ("a.png", "b.png"):
        reasons.add(name, f"{name} cannot be decoded")
    assert [(group.ids, group.reason) for group in reasons] == [
        ("a.png, b.png", "it cannot be decoded")
    ]
    assert [set(group) for group in reasons.as_json()] == [{"reason", "count", "first"}]


def test_names_between_colons_are_told_as_they_are(
    embed: Callable[..., int], folder: Path, capsys: Any
) -> None:
    """`:mask:` is the name of an emoji too."""
    np.savez(folder / "b.npz", image=np.load(folder / "a.npy"), mask=np.ones((2, SIZE, SIZE)))
    assert embed() == 0
    assert "b.npz:mask: by its name" in capsys.readouterr().err
