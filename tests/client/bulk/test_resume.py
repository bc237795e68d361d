"""Runs that stop and go on: what is kept, what is refused, and that nothing is done twice."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from vim_embed_client.bulk.checkpoint import Checkpoint
from vim_embed_client.bulk.pipeline import Cursor, RowResult
from vim_embed_client.bulk.row_shape import EMBEDDING, Origin, vector
from vim_embed_client.bulk.sources.reader import Skipped
from vim_embed_client.cli.main import run
from vim_embed_client.errors import ResumeError
from vim_embed_client.results import Provenance

from ..fake_service import SIZE, FakeService, embed_rows, refuse

Embed = Callable[..., int]
ROWS = 40


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four files of ten rows."""
    folder = tmp_path / "in"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (ROWS, 3, SIZE, SIZE), dtype=np.uint8)
    for number in range(4):
        np.save(folder / f"{number}.npy", pixels[number * 10 : number * 10 + 10])
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.npy"


@pytest.fixture
def embed(url: str, folder: Path, out: Path) -> Embed:
    """Embed `folder` in batches of 5, in parts of 10, one request after the other."""
    start = ["embed", "--url", url, str(folder), "-o", str(out), "--quiet", "--json"]
    start += ["--batch-rows", "5", "--part-rows", "10", "--in-flight", "1", "--retries", "0"]
    return lambda *args: run([*start, *map(str, args)])


@pytest.fixture
def stopped(embed: Embed, service: FakeService, capsys: Any) -> None:
    """An attempt that the service broke off after 25 rows."""

    async def fail_later(service: FakeService, request: Any) -> Any:
        if len(service.seen) > 5:
            return await refuse(500, "internal_error", "broken")(service, request)
        return None

    service.always = fail_later
    assert embed() == 1
    assert "25 finished rows are kept in" in capsys.readouterr().err
    service.always = None
    service.seen.clear()


def rows_of(folder: Path) -> Any:
    return np.concatenate([embed_rows(np.load(path)) for path in sorted(folder.glob("*.npy"))])


def summary(capsys: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.usefixtures("stopped")
def test_only_what_is_missing_is_embedded(
    embed: Embed, folder: Path, out: Path, service: FakeService, capsys: Any
) -> None:
    assert embed() == 0
    assert sum(seen.rows for seen in service.seen) == ROWS - 25
    found = summary(capsys)
    assert (found["rows"], found["resumed"], found["skipped_count"]) == (ROWS, 25, 0)
    np.testing.assert_array_equal(np.load(out), rows_of(folder))
    ids = [f"{folder}/{number}.npy#{row}" for number in range(4) for row in range(10)]
    assert json.loads(Path(f"{out}.json").read_text())["ids"] == ids
    assert sorted(os.listdir(out.parent)) == ["in", "out.npy", "out.npy.json"]


@pytest.mark.usefixtures("stopped")
def test_restart_begins_anew(embed: Embed, service: FakeService, capsys: Any) -> None:
    assert embed("--restart", "--pooling", "cls") == 0
    assert sum(seen.rows for seen in service.seen) == ROWS
    assert summary(capsys)["resumed"] == 0


@pytest.mark.usefixtures("stopped")
@pytest.mark.parametrize(
    ("args", "named"),
    [
        (("--pooling", "cls"), 'pooling was "mean", now "cls"'),
        (("--dtype", "float16"), "dtype was"),
        (("--mean", "0.5,0.5,0.5"), "mean was null, now [0.5, 0.5, 0.5]"),
        (("--flip",), "--flip was not given, now given"),
        (("--exact",), "exact was null, now true"),
    ],
)
def test_other_options_are_refused(
    embed: Embed, service: FakeService, capsys: Any, args: tuple[str, ...], named: str
) -> None:
    assert embed(*args) == 4
    told = capsys.readouterr().err
    assert named in told
    assert "--restart" in told
    assert service.seen == []
    assert embed() == 0


@pytest.mark.usefixtures("stopped")
@pytest.mark.parametrize(
    "args",
    [
        ("--batch-rows", 7, "--in-flight", 3, "--part-rows", 3, "--on-error", "skip"),
        ("--model", "vim-tiny"),  # which made the finished rows
        ("--no-exact",),  # as the service does by itself
        ("--resize",),  # all have the model's size
    ],
)
def test_options_that_change_no_row_are_free(
    embed: Embed, folder: Path, out: Path, service: FakeService, args: tuple[Any, ...]
) -> None:
    assert embed(*args) == 0
    assert sum(seen.rows for seen in service.seen) == ROWS - 25
    np.testing.assert_array_equal(np.load(out), rows_of(folder))


def fluxes(path: Path, *, seed: int, blank: bool = False) -> None:
    """A FITS image of one band, with a hole where `blank`."""
    cube = np.random.default_rng(seed).random((SIZE, SIZE)).astype("f4")
    cube[0, 0] = np.nan if blank else cube[0, 0]
    fits.HDUList([fits.PrimaryHDU(cube)]).writeto(path)


@pytest.fixture
def sky(tmp_path: Path) -> Path:
    """Three images of fluxes, of which the second has a hole."""
    folder = tmp_path / "sky"
    folder.mkdir()
    for seed in range(3):
        fluxes(folder / f"{seed}.fits", seed=seed, blank=seed == 1)
    return folder


def test_the_advice_of_a_refusal_can_be_followed(
    url: str, sky: Path, out: Path, service: FakeService, capsys: Any
) -> None:
    """The run stops at a hole; with --blank it goes on, since the finished row has none."""
    args = ["embed", "--url", url, str(sky), "-o", str(out), "--batch-rows", "1"]
    assert run([*args, "--in-flight", "1", "--json"]) == 1
    assert "give --blank" in capsys.readouterr().err
    service.seen.clear()
    assert run([*args, "--blank", "0", "--json"]) == 0
    assert summary(capsys)["resumed"] == 1
    assert sum(seen.rows for seen in service.seen) == 2
    assert json.loads(Path(f"{out}.json").read_text())["options"]["stretch"]["blank"] == 0


@pytest.mark.parametrize(
    ("first", "then", "row"),
    [
        (("--on-error", "skip"), ("--blank", "0"), "1.fits"),  # it would be a row now
        (("--blank", "0"), ("--blank", "1"), "1.fits"),  # another one
        (("--blank", "0"), ("--blank", "0", "--stretch", "linear"), "0.fits"),
    ],
)
def test_options_that_change_a_finished_row_are_refused_by_its_name(
    url: str,
    sky: Path,
    out: Path,
    service: FakeService,
    capsys: Any,
    first: tuple[str, ...],
    then: tuple[str, ...],
    row: str,
) -> None:
    args = ["embed", "--url", url, str(sky), "-o", str(out), "--batch-rows", "1"]
    args += ["--in-flight", "1", "--retries", "0"]
    wanted = 2 if "--blank" in first else 1
    service.always = _after(wanted, refuse(500, "internal_error"))
    assert run([*args, *first]) == 1
    service.seen.clear()
    assert run([*args, *then]) == 4
    told = capsys.readouterr().err
    assert f"which change {sky}/{row}" in told
    assert f"{then[-2]} was " in told
    assert service.seen == []


def _add(folder: Path) -> None:
    np.save(folder / "00.npy", np.zeros((2, 3, SIZE, SIZE), np.uint8))


def _remove(folder: Path) -> None:
    (folder / "1.npy").unlink()


def _rewrite(folder: Path) -> None:
    np.save(folder / "2.npy", np.load(folder / "2.npy")[::-1])


@pytest.mark.usefixtures("stopped")
@pytest.mark.parametrize("change", [_add, _remove, _rewrite])
def test_other_inputs_behind_finished_rows_are_refused(
    embed: Embed, folder: Path, service: FakeService, capsys: Any, change: Callable[[Path], None]
) -> None:
    change(folder)
    assert embed() == 4
    told = capsys.readouterr().err
    assert "the inputs behind the 25 finished rows" in told
    assert "--restart" in told
    assert service.seen == []
    assert embed("--restart") == 0


@pytest.mark.usefixtures("stopped")
def test_inputs_not_reached_yet_may_change(embed: Embed, folder: Path, out: Path) -> None:
    np.save(folder / "3.npy", np.load(folder / "3.npy")[:4])
    np.save(folder / "4.npy", np.ones((2, 3, SIZE, SIZE), np.uint8))
    assert embed() == 0
    np.testing.assert_array_equal(np.load(out), rows_of(folder))


@pytest.mark.usefixtures("stopped")
def test_other_weights_are_refused(embed: Embed, service: FakeService, capsys: Any) -> None:
    service.provenance["Weights-Digest"] = "sha256:cccc"
    assert embed() == 1  # they changed after the service said which it has
    told = capsys.readouterr().err
    assert "weights_digest" in told
    assert "--restart" in told


def test_other_weights_are_refused_before_anything_is_sent(
    embed: Embed, service: FakeService, capsys: Any
) -> None:
    service.provenance["Weights-Digest"] = "sha256:before"
    service.always = _after(5, refuse(500, "internal_error"))
    assert embed() == 1
    service.seen.clear()
    service.always = None
    assert embed() == 4
    told = capsys.readouterr().err
    assert "weights_digest was sha256:before, now sha256:aaaa" in told
    assert service.seen == []


def _after(requests: int, fault: Any) -> Any:
    async def later(service: FakeService, request: Any) -> Any:
        return await fault(service, request) if len(service.seen) > requests else None

    return later


@pytest.mark.usefixtures("stopped")
def test_a_manifest_cut_short_loses_one_part_only(
    embed: Embed, folder: Path, out: Path, service: FakeService
) -> None:
    manifest = Path(f"{out}.parts/manifest.jsonl")
    manifest.write_bytes(manifest.read_bytes()[:-7])
    assert embed() == 0
    assert sum(seen.rows for seen in service.seen) == ROWS - 20
    np.testing.assert_array_equal(np.load(out), rows_of(folder))


@pytest.mark.usefixtures("stopped")
def test_parts_that_no_manifest_names_are_thrown_away(
    embed: Embed, folder: Path, out: Path
) -> None:
    parts = Path(f"{out}.parts")
    for name in ("000003.npy", "000003.json", "000004.npy.new", "joined.npy"):
        (parts / name).write_bytes(b"from a crash")
    assert embed() == 0
    np.testing.assert_array_equal(np.load(out), rows_of(folder))
    assert not parts.exists()


@pytest.mark.usefixtures("stopped")
@pytest.mark.parametrize("name", ["000001.npy", "000001.json"])
def test_damaged_or_missing_parts_are_refused(
    embed: Embed, out: Path, capsys: Any, name: str
) -> None:
    path = Path(f"{out}.parts/{name}")
    content = path.read_bytes()
    path.write_bytes(content[:-3] + b"abc")
    assert embed() == 4
    assert "is damaged" in capsys.readouterr().err
    path.unlink()
    assert embed() == 4
    assert f"{path} is missing" in capsys.readouterr().err
    path.write_bytes(content)
    assert embed() == 0


@pytest.mark.usefixtures("stopped")
def test_a_copy_of_the_parts_goes_on_elsewhere(
    url: str, folder: Path, out: Path, tmp_path: Path, service: FakeService
) -> None:
    shutil.copytree(f"{out}.parts", tmp_path / "moved.npy.parts")
    args = ["embed", "--url", url, str(folder), "-o", str(tmp_path / "moved.npy"), "--quiet"]
    assert run(args) == 0
    assert sum(seen.rows for seen in service.seen) == ROWS - 25


@pytest.mark.usefixtures("stopped")
def test_files_of_others_are_never_removed(embed: Embed, out: Path) -> None:
    mine = Path(f"{out}.parts/notes.txt")
    mine.write_text("mine")
    assert embed("--restart") == 0
    assert mine.read_text() == "mine"


def test_two_runs_on_one_output_are_refused(
    embed: Embed, out: Path, service: FakeService, capsys: Any
) -> None:
    first = Checkpoint(out, {})
    assert embed() == 2
    assert "another run is writing" in capsys.readouterr().err
    first.close(remove=True)
    assert embed() == 0


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGTERM])
def test_signals_keep_what_is_finished(
    url: str, folder: Path, out: Path, service: FakeService, kill: signal.Signals, capsys: Any
) -> None:
    command = [str(Path(sys.executable).with_name("vim-embed")), "embed", "--url", url]
    command += [str(folder), "-o", str(out), "--batch-rows", "5", "--in-flight", "1"]
    process: subprocess.Popen[str]

    async def interrupt(service: FakeService, request: Any) -> Any:
        if len(service.seen) == 4:
            process.send_signal(kill)
        while len(service.seen) >= 4 and process.poll() is None:
            await asyncio.sleep(0.01)  # else all could be done before the signal is seen
        return None

    service.always = interrupt
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    # The third answer may have arrived without having been taken.
    assert "15 finished rows are kept" in told or "10 finished rows are kept" in told
    service.always = None
    assert run(command[1:]) == 0
    np.testing.assert_array_equal(np.load(out), rows_of(folder))


PROVENANCE = Provenance(model="m")


def part_of(checkpoint: Checkpoint, first: int, stop: int) -> None:
    checkpoint.check(Origin(PROVENANCE, vector(2)))
    for row in range(first, stop):
        checkpoint.add(RowResult(Cursor(0, row + 1, "d"), f"{row}", np.full(2, row, np.float32)))


def test_a_part_whose_line_was_written_twice_counts_once(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "o.npy", {})
    part_of(checkpoint, 0, 3)
    checkpoint.commit()
    checkpoint.close()
    manifest = tmp_path / "o.npy.parts" / "manifest.jsonl"
    manifest.write_bytes(manifest.read_bytes() + manifest.read_bytes().splitlines(True)[1])
    checkpoint = Checkpoint(tmp_path / "o.npy", {})
    assert checkpoint.rows == 3
    assert [ids for ids, _ in checkpoint.blocks()] == [["0", "1", "2"]]
    checkpoint.close()


@pytest.mark.parametrize("step", range(8))
def test_a_crash_at_any_step_of_a_commit_loses_and_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Breaks off before the n-th fsync or rename of the second part, as a power cut might."""
    checkpoint = Checkpoint(tmp_path / "o.npy", {})
    part_of(checkpoint, 0, 3)
    checkpoint.commit()
    part_of(checkpoint, 3, 5)
    left = [step]

    def breaking(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            if left[0] == 0:
                raise SystemError("power cut")
            left[0] -= 1
            return real(*args)

        return call

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", breaking(os.fsync))
        patched.setattr(os, "replace", breaking(os.replace))
        try:
            checkpoint.commit()
        except SystemError:
            assert step < 6
    checkpoint._manifest.close()
    checkpoint._lock.close()
    again = Checkpoint(tmp_path / "o.npy", {})
    part_of(again, again.cursor.row, 7)
    again.commit()
    assert again.rows == 7
    assert [row_id for ids, _ in again.blocks() for row_id in ids] == list("0123456")
    rows = np.concatenate([arrays[EMBEDDING] for _, arrays in again.blocks()])
    np.testing.assert_array_equal(rows[:, 0], np.arange(7))
    again.close()


def test_what_was_skipped_is_remembered(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "o.npy", {}, part_rows=2)
    checkpoint.check(Origin(PROVENANCE, vector(2)))
    for row in range(5):
        checkpoint.add(RowResult(Cursor(0, row + 1), f"{row}", Skipped(id=f"{row}", reason="no")))
    checkpoint.commit()
    checkpoint.close()
    again = Checkpoint(tmp_path / "o.npy", {})
    assert (again.rows, again.skipped, again.cursor.row) == (0, 5, 5)
    assert [one.id for one in again.all_skipped()] == list("01234")
    again.close()


def test_parts_of_another_format_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "o.npy.parts"
    folder.mkdir()
    (folder / "manifest.jsonl").write_text('{"format": 99, "options": {}}\n')
    with pytest.raises(ResumeError, match="another version"):
        Checkpoint(tmp_path / "o.npy", {})


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("step", range(1, 60))
def test_an_interrupt_at_any_line_of_a_commit_loses_and_doubles_nothing(
    tmp_path: Path, step: int
) -> None:
    """Ctrl-C before the n-th line of the module, and then the commit that keeps what is there."""
    checkpoint = Checkpoint(tmp_path / "o.npy", {})
    part_of(checkpoint, 0, 3)
    left = [step]

    def trace(frame: Any, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.endswith(("bulk/checkpoint.py", "bulk/durable_files.py")):
            return None
        if event == "line":
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        checkpoint.commit()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    checkpoint.commit()
    checkpoint.close()
    again = Checkpoint(tmp_path / "o.npy", {})
    assert again.rows == 3
    assert [ids for ids, _ in again.blocks()] == [["0", "1", "2"]]
    again.close()
