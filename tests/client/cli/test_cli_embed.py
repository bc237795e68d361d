"""`vim-embed embed` from files to files, against the fake service."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open

from client.fake_service import DIM, SIZE, FakeService, decode, embed_rows, refuse, wait_for
from support.embedding_files import write_embeddings
from vim_embed_client.cli.common import SOME_LEFT_OUT
from vim_embed_client.cli.main import run
from vim_embed_client.results import Provenance

Run = Callable[..., int]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images in two folders and two arrays, in an order that is not that of their names."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "images"
    (folder / "b").mkdir(parents=True)
    for name in ("z.png", "b/c.jpg", "b/a.webp", "M.TIF"):
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(folder / name)
    np.save(folder / "rows.npy", rng.integers(0, 256, (5, 3, SIZE, SIZE), dtype=np.uint8))
    np.save(folder / "b/one.npy", rng.standard_normal((3, SIZE, SIZE)))
    (folder / "notes.txt").write_text("not an image")
    (folder / "._z.png").write_text("what some systems leave beside a file")
    return folder


def expected(folder: Path) -> tuple[list[str], NDArray[Any]]:
    """The ids and embeddings that `folder` must give."""
    ids, rows = [], []
    for name in ("M.TIF", "b/a.webp", "b/c.jpg", "b/one.npy", "rows.npy", "z.png"):
        path = folder / name
        if name == "rows.npy":
            ids += [f"{path}#{i}" for i in range(5)]
            rows += list(embed_rows(np.load(path)))
        else:
            ids.append(str(path))
            one = name == "b/one.npy"
            pixels = np.load(path).astype("f4") if one else decode(path.read_bytes())
            rows += list(embed_rows(pixels[None]))
    return ids, np.stack(rows)


@pytest.fixture
def embed(url: str) -> Run:
    """Run `vim-embed embed` on the fake service."""
    return lambda *args: run(["embed", "--url", url, *map(str, args)])


def test_npy_with_its_sidecar(embed: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.npy"
    assert embed(folder, "-o", out, "--batch-rows", 2) == 0
    ids, rows = expected(folder)
    about = json.loads((tmp_path / "out.npy.json").read_text())
    assert about["ids"] == ids
    assert about["provenance"]["weights_digest"] == "sha256:aaaa"
    assert about["skipped"] == []
    np.testing.assert_array_equal(np.load(out), rows)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images", "out.npy", "out.npy.json"]


def test_parquet(embed: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    assert embed(folder, "-o", out) == 0
    ids, rows = expected(folder)
    table = pyarrow.parquet.read_table(out)
    assert table.column_names == ["id", "embedding"]
    assert table["id"].to_pylist() == ids
    assert table.schema.field("embedding").type == pyarrow.list_(pyarrow.float32(), DIM)
    np.testing.assert_array_equal(np.stack(table["embedding"].to_numpy()), rows)
    provenance = json.loads(table.schema.metadata[b"vim_embed.provenance"])
    assert provenance["model"] == "vim-tiny"


def test_safetensors(embed: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    assert embed(folder, "-o", out, "--dtype", "float16") == 0
    ids, rows = expected(folder)
    with safe_open(out, "numpy") as file:
        np.testing.assert_array_equal(file.get_tensor("embedding"), rows.astype("f2"))
        metadata = file.metadata()
    assert json.loads(metadata["ids"]) == ids
    assert (metadata["model"], metadata["random_weights"]) == ("vim-tiny", "true")


def test_rows_of_alike_files_share_requests(
    embed: Run, folder: Path, tmp_path: Path, service: FakeService
) -> None:
    assert embed(folder, "-o", tmp_path / "out.npy") == 0
    assert sorted(seen.rows for seen in service.seen) == [1, 1, 3, 5]


def test_files_of_one_row_each_are_stacked(
    embed: Run, tmp_path: Path, service: FakeService
) -> None:
    pixels = np.random.default_rng(1).standard_normal((5, 3, SIZE, SIZE)).astype("f4")
    for i, row in enumerate(pixels):
        np.save(tmp_path / f"{i}.npy", row)
    assert embed(tmp_path, "-o", tmp_path / "out.npy", "--batch-rows", 3) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), embed_rows(pixels))
    assert sorted(seen.rows for seen in service.seen) == [2, 3]


def test_a_second_run_leaves_its_own_output_out(embed: Run, folder: Path) -> None:
    for _ in range(2):
        assert embed(folder, "-o", folder / "out.npy") == 0
    assert len(np.load(folder / "out.npy")) == 10


def test_patterns_and_single_files(embed: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.npy"
    assert embed(folder / "**/*.npy", folder / "z.png", folder / "z.png", "-o", out) == 0
    ids = json.loads((tmp_path / "out.npy.json").read_text())["ids"]
    assert ids[0].endswith("one.npy")
    assert [Path(i).name for i in ids[1:]] == [*(f"rows.npy#{i}" for i in range(5)), "z.png"]


def test_options_reach_the_service(
    embed: Run, folder: Path, tmp_path: Path, service: FakeService
) -> None:
    args = ["--model", "vim-tiny", "--pooling", "cls", "--exact"]
    args += ["--mean", "0.5,0.5,0.5", "--std", "0.25,0.5,1"]
    assert embed(folder / "z.png", "-o", tmp_path / "o.npy", "--api-key", "k", *args) == 0
    assert service.seen[0].headers["authorization"] == "Bearer k"
    assert service.seen[0].query == {
        "model": "vim-tiny",
        "pooling": "cls",
        "dtype": "float32",
        "exact": "true",
        "mean": "0.5,0.5,0.5",
        "std": "0.25,0.5,1.0",
    }


def _damage(folder: Path) -> list[str]:
    (folder / "b/bad.png").write_text("not an image")
    (folder / "b/bad.npy").write_text("not an array")
    np.save(folder / "flat.npy", np.zeros((4, 4), "f4"))
    np.save(folder / "pickled.npy", np.array([{}], object), allow_pickle=True)
    rows = np.load(folder / "rows.npy").astype("f4")
    rows[3, 0, 0, 0] = np.nan
    np.save(folder / "rows.npy", rows)
    names = ["b/bad.npy", "b/bad.png", "flat.npy", "pickled.npy", "rows.npy#3"]
    return [str(folder / name) for name in names]


def test_skip_leaves_out_what_cannot_be_embedded(
    embed: Run, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = _damage(folder)
    out = tmp_path / "out.npy"
    assert embed(folder, "-o", out, "--on-error", "skip") == SOME_LEFT_OUT
    about = json.loads((tmp_path / "out.npy.json").read_text())
    assert sorted(skipped["id"] for skipped in about["skipped"]) == bad
    ids, rows = expected(folder)
    kept = [i for i, row_id in enumerate(ids) if row_id not in bad]
    assert about["ids"] == [ids[i] for i in kept]
    np.testing.assert_array_equal(np.load(out), rows[kept])
    told = capsys.readouterr().err
    assert all(f"skipped {path}: " in told for path in bad)


@pytest.mark.parametrize("index", range(5))
def test_fail_names_the_file_and_keeps_what_is_finished(
    embed: Run, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], index: int
) -> None:
    bad = _damage(folder)
    only = bad[index].split("#")[0]
    out = tmp_path / "out.npy"
    write_embeddings(out, np.zeros((1, DIM), np.float32), ["a"], Provenance(model="older"))
    older = out.read_bytes()
    assert embed(folder / "z.png", folder / "M.TIF", only, "-o", out, "--overwrite") == 1
    told = capsys.readouterr().err
    assert f"Error: {bad[index]}: " in told
    assert "finished rows are kept" in told
    assert out.read_bytes() == older
    again = (folder / "z.png", folder / "M.TIF", only, "-o", out, "--on-error", "skip", "--json")
    assert embed(*again, "--overwrite") == SOME_LEFT_OUT
    summary = json.loads(capsys.readouterr().out)
    assert [one["id"] for one in summary["skipped"]] == [bad[index]]
    assert summary["resumed"] == (4 if "#" in bad[index] else 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images", "out.npy", "out.npy.json"]


def test_nothing_left_is_a_failure(
    embed: Run, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "z.png").write_text("")
    assert embed(folder / "z.png", "-o", tmp_path / "o.npy", "--on-error", "skip") == 1
    assert "none of the files could be embedded" in capsys.readouterr().err


def test_faults_of_the_service_are_not_blamed_on_a_file(
    embed: Run, folder: Path, tmp_path: Path, service: FakeService, capsys: Any
) -> None:
    args = ("-o", tmp_path / "o.npy", "--on-error", "skip", "--retries", 0)
    service.always = refuse(500, "internal_error", "out of luck")
    assert embed(folder, *args) == 1
    assert "Error: out of luck (HTTP 500 internal_error" in capsys.readouterr().err
    service.always = None
    assert embed(folder, *args, "--model", "vim-huge") == 1
    assert "no such model; loaded: vim-tiny" in capsys.readouterr().err


def test_a_service_that_changes_meanwhile_is_noticed(
    embed: Run, folder: Path, tmp_path: Path, service: FakeService, capsys: Any
) -> None:
    async def change(service: FakeService, request: Any) -> None:
        service.provenance = service.provenance | {"Weights-Digest": f"{len(service.seen)}"}

    service.always = change
    assert embed(folder, "-o", tmp_path / "o.npy", "--in-flight", 1) == 1
    assert "weights_digest" in capsys.readouterr().err
    assert not (tmp_path / "o.npy").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["-o", "out.txt"], "does not end in one of .npy, .npz, .parquet, .safetensors"),
        (["-o", "nowhere/out.npy"], "there is no folder nowhere: make it first"),
        (["-o", "out.npy", "absent.png"], "absent.png is not there"),
        (["-o", "out.npy", "empty"], "no images, arrays or shards in empty"),
        (["-o", "out.npy", "--mean", "1,2"], "the model takes 3 bands, and --mean has 2 numbers"),
        (["-o", "out.npy", "--batch-rows", "0"], "batch-rows"),
        ([], "Missing option"),
    ],
)
def test_wrong_usage(
    embed: Run,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    args: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(folder)
    (folder / "empty").mkdir()
    assert embed(*args, folder / "z.png") == 2
    assert message in capsys.readouterr().err


def test_parquet_without_pyarrow_is_refused_before_the_work(
    embed: Run,
    folder: Path,
    tmp_path: Path,
    service: FakeService,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert embed(folder, "-o", tmp_path / "out.parquet") == 2
    assert 'pip install "vim-embed[parquet]"' in capsys.readouterr().err
    assert service.seen == []


def test_json_summary(embed: Run, folder: Path, tmp_path: Path, capsys: Any) -> None:
    assert embed(folder, "-o", tmp_path / "o.npy", "--json", "--quiet") == 0
    captured = capsys.readouterr()
    summary = json.loads(captured.out)
    assert (summary["rows"], summary["dim"], summary["skipped"]) == (10, DIM, [])
    assert captured.err == ""


def test_random_weights_are_pointed_out(
    embed: Run, folder: Path, tmp_path: Path, service: FakeService, capsys: Any
) -> None:
    embed(folder, "-o", tmp_path / "o.npy")
    assert "numbers mean nothing" in capsys.readouterr().err
    service.provenance["Random-Weights"] = "false"
    embed(folder, "-o", tmp_path / "o.npy")
    assert "numbers mean nothing" not in capsys.readouterr().err


def test_ctrl_c_ends_it_and_leaves_nothing(
    embed: Run, folder: Path, tmp_path: Path, service: FakeService, capsys: Any
) -> None:
    never = threading.Event()

    async def interrupt(service: FakeService, request: Any) -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        await wait_for(never)(service, request)

    service.faults.append(interrupt)
    assert embed(folder, "-o", tmp_path / "o.npy", "--in-flight", 1) == 130
    never.set()
    assert "Interrupted." in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["images"]
