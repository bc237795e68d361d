"""An output and the files beside it always belong together, wherever a run ends."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vim_embed_client.bulk import outputs
from vim_embed_client.cli.main import run
from vim_embed_client.errors import InputError
from vim_embed_client.scoring.embedding_files import read_embeddings

from ..fake_service import SIZE, embed_rows

_SCRIPT = Path(__file__).with_name("join_killed.py")
OLD, NEW = 6, 9


@pytest.fixture
def sources(tmp_path: Path) -> dict[int, Path]:
    """Two arrays, by their number of rows; the first is embedded already."""
    rng = np.random.default_rng(0)
    found = {}
    for rows in (OLD, NEW):
        found[rows] = tmp_path / f"{'x' * 100}{rows}.npy"
        np.save(found[rows], rng.integers(0, 256, (rows, 3, SIZE, SIZE), dtype=np.uint8))
    return found


def rows_of_pair(out: Path, sources: dict[int, Path]) -> int | None:
    """The rows of the pair in `out`, which must belong together; None where there is no pair."""
    if out.suffix == ".npy" and not outputs.sidecar(out).exists():
        with pytest.raises(InputError, match="give the command of that run again"):
            read_embeddings(str(out))
        return None
    found = read_embeddings(str(out))
    rows = len(found.embeddings)
    np.testing.assert_array_equal(found.embeddings, embed_rows(np.load(sources[rows])))
    assert found.ids == [f"{sources[rows]}#{row}" for row in range(rows)]
    if out.suffix == ".npy":
        about = json.loads(outputs.sidecar(out).read_text())
        assert about["options"]["pooling"] == ("mean" if rows == OLD else "cls")
    return rows


@pytest.mark.parametrize(
    "ending",
    [
        ".npy",
        pytest.param(".parquet", marks=pytest.mark.soak),
        pytest.param(".safetensors", marks=pytest.mark.soak),
    ],
)
def test_killed_before_every_step_of_the_join(
    url: str, sources: dict[int, Path], tmp_path: Path, ending: str
) -> None:
    """A second run with other options and rows is killed at each step, then given again."""
    out = tmp_path / f"o{ending}"
    start = ["embed", "--url", url, "--quiet", "-o", str(out)]
    assert run([*start, str(sources[OLD])]) == 0
    command = [
        sys.executable,
        str(_SCRIPT),
        *start,
        str(sources[NEW]),
        "--pooling",
        "cls",
        "--overwrite",
    ]
    seen: list[int | None] = []
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for line in process.stdout:
            assert int(line) == len(seen) + 1
            seen.append(rows_of_pair(out, sources))
            process.stdin.write("go on\n")
            process.stdin.flush()
    assert process.returncode == 0
    assert len(seen) >= (11 if ending == ".npy" else 5)
    assert seen == sorted(seen, key=lambda rows: {OLD: 0, None: 1, NEW: 2}[rows])
    assert rows_of_pair(out, sources) == NEW
    beside = {".npy": {"o.npy.json"}}.get(ending, set())
    names = {path.name for path in sources.values()}
    assert {p.name for p in tmp_path.iterdir()} == names | {out.name} | beside


def test_a_sidecar_of_another_array_is_refused(
    url: str, sources: dict[int, Path], tmp_path: Path
) -> None:
    out = tmp_path / "o.npy"
    assert run(["embed", "--url", url, str(sources[OLD]), "-o", str(out)]) == 0
    np.save(out, np.load(out)[::-1])
    with pytest.raises(InputError, match="describes other embeddings"):
        read_embeddings(str(out))
    Path(f"{out}.json").unlink()
    assert read_embeddings(str(out)).ids is None


def limited(args: list[str], most: int) -> subprocess.CompletedProcess[str]:
    """The command in a process whose files may have `most` bytes, as on a disk that is full."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    command = [sys.executable, "-m", "vim_embed_client.cli", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, preexec_fn=limit)


@pytest.mark.parametrize(
    ("ending", "most", "part_rows"),
    [
        (".npy", 0, 3),
        (".npy", 100, 3),
        (".npy", 1200, 9),
        (".npy", 1900, 3),
        (".npy", 2000, 9),
        (".parquet", 2000, 9),
        (".safetensors", 2000, 9),
    ],
)
def test_a_full_disk_loses_nothing(
    url: str,
    sources: dict[int, Path],
    tmp_path: Path,
    ending: str,
    most: int,
    part_rows: int,
) -> None:
    """In a part, in the manifest, in the output or in its sidecar: a message, and all is kept."""
    out = tmp_path / f"o{ending}"
    start = ["embed", "--url", url, "-o", str(out), "--batch-rows", "3"]
    start += ["--part-rows", str(part_rows)]
    assert run([*start, str(sources[OLD])]) == 0
    second = [*start, str(sources[NEW]), "--pooling", "cls", "--overwrite"]
    done = limited(second, most)
    assert done.returncode == 1, done.stderr
    assert f"{out} cannot be written (File too large): free space" in done.stderr
    assert "Traceback" not in done.stderr
    assert rows_of_pair(out, sources) == OLD
    assert run(second) == 0
    assert rows_of_pair(out, sources) == NEW


def _link(out: Path) -> str:
    out.symlink_to(out.with_name("real.npy"))
    return "is a symbolic link"


def _link_beside(out: Path) -> str:
    outputs.sidecar(out).symlink_to(out.with_name("real.json"))
    return "is a symbolic link"


def _link_of_parts(out: Path) -> str:
    out.with_name("elsewhere").mkdir()
    out.with_name("o.npy.parts").symlink_to(out.with_name("elsewhere"))
    return "is a symbolic link"


def _pipe(out: Path) -> str:
    os.mkfifo(out)
    return "is in the way"


def _folder_beside(out: Path) -> str:
    outputs.sidecar(out).mkdir()
    return "is in the way"


def _no_folder(out: Path) -> str:
    out.parent.joinpath("o.npy.parts").write_text("a file")
    return "is in the way"


@pytest.mark.parametrize(
    "prepare", [_link, _link_beside, _link_of_parts, _pipe, _folder_beside, _no_folder]
)
def test_what_a_rename_would_replace_is_refused(
    url: str,
    sources: dict[int, Path],
    tmp_path: Path,
    prepare: Callable[[Path], str],
    capsys: Any,
) -> None:
    out = tmp_path / "o.npy"
    reason = prepare(out)
    before = sorted(p.name for p in tmp_path.iterdir())
    assert run(["embed", "--url", url, str(sources[OLD]), "-o", str(out)]) == 2
    assert reason in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_a_name_that_is_too_long_is_refused(
    url: str, sources: dict[int, Path], tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / f"{'o' * 249}.npy"  # which fits, and with .parts does not
    assert run(["embed", "--url", url, str(sources[OLD]), "-o", str(out)]) == 2
    assert "File name too long" in capsys.readouterr().err


def test_more_skips_than_the_metadata_names_are_beside_the_right_array(
    tmp_path: Path, sources: dict[int, Path], url: str
) -> None:
    bad = np.zeros((1200, 3, 1, 1), np.float32)
    bad[:] = np.nan
    np.save(tmp_path / "bad.npy", bad)
    out = tmp_path / "o.npy"
    args = ["embed", "--url", url, "-o", str(out), "--on-error", "skip", "--quiet"]
    assert run([*args, str(sources[OLD]), str(tmp_path / "bad.npy")]) == 5
    listed = outputs.skipped_list(out).read_text().splitlines()
    assert [json.loads(line)["id"] for line in listed] == [
        f"{tmp_path}/bad.npy#{row}" for row in range(1200)
    ]
    about: dict[str, Any] = json.loads(Path(f"{out}.json").read_text())
    assert (about["summary"]["skipped"], len(about["skipped"])) == (1200, 1000)
    assert run([*args, str(sources[OLD])]) == 0
    assert not outputs.skipped_list(out).exists()
