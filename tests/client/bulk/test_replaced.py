"""A finished output is replaced by a run that makes its rows again; by others only on a word."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from vim_embed_client.bulk.replaced import earlier_output
from vim_embed_client.cli.main import run

from ..fake_service import SIZE, FakeService

Embed = Callable[..., int]
ENDINGS = ["npy", "npz", "parquet", "safetensors"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    Path("in").mkdir()
    for name in ("a", "b"):
        np.save(f"in/{name}.npy", rng.integers(0, 256, (3, 3, SIZE, SIZE), dtype=np.uint8))
    images = list(rng.integers(0, 256, (4, 3 * SIZE * SIZE), dtype=np.uint8))
    columns = {"x": images, "name": list("pqrs"), "z": [1, 2, 3, 4]}
    pyarrow.parquet.write_table(pa.table(columns), "t.parquet")
    return tmp_path


@pytest.fixture
def embed(url: str) -> Embed:
    return lambda *args: run(["embed", "--url", url, *args])


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_same_run_again_says_what_it_replaces(
    folder: Path, embed: Embed, ending: str, capsys: Any
) -> None:
    out = f"o.{ending}"
    assert embed("in", "-o", out) == 0
    assert "replaces" not in capsys.readouterr().err
    earlier = earlier_output(Path(out))
    assert earlier is not None
    assert list(earlier.ids) == [f"in/{name}.npy#{row}" for name in "ab" for row in range(3)]
    np.save("in/c.npy", np.zeros((1, 3, SIZE, SIZE), np.uint8))
    assert embed("in", "-o", out) == 0
    assert f"{out} holds 6 rows of an earlier run with the same options" in capsys.readouterr().err
    assert embed("in", "-o", out, "--quiet") == 0
    assert capsys.readouterr().err == ""


_OTHER: dict[str, tuple[list[str], list[str], str]] = {
    "an option": (["in"], ["in", "--flip"], "--flip was not given, now given"),
    "two options": (
        ["in", "--dtype", "float16"], ["in", "--pooling", "max"],
        "--dtype was float16, now float32; --pooling was mean, now max",
    ),
    "fewer columns": (
        ["t.parquet", "--shape", f"3,{SIZE},{SIZE}", "--column", "x", "--keep", "name,z"],
        ["t.parquet", "--shape", f"3,{SIZE},{SIZE}", "--column", "x", "--keep", "z"],
        "--keep was name,z, now z",
    ),
    "other inputs": (
        ["in/a.npy", "in/b.npy"], ["in/b.npy"],
        "3 of them are of inputs that are not given now, such as in/a.npy#0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("case", _OTHER)
def test_another_run_needs_a_word(
    folder: Path, embed: Embed, service: FakeService, case: str, ending: str, capsys: Any
) -> None:
    first, second, changes = _OTHER[case]
    out = Path(f"o.{ending}")
    assert embed(*first, "-o", str(out)) == 0
    before, asked, earlier = out.read_bytes(), len(service.seen), earlier_output(out)
    capsys.readouterr()
    assert embed(*second, "-o", str(out)) == 4
    told = " ".join(capsys.readouterr().err.split())
    assert f"which this one would not make again ({changes})" in told
    assert "--overwrite" in told
    assert out.read_bytes() == before
    assert not Path(f"{out}.parts").exists()
    assert len(service.seen) == asked
    assert embed(*second, "-o", str(out), "--overwrite") == 0
    assert f"replaces at its end: {changes}." in " ".join(capsys.readouterr().err.split())
    assert earlier_output(out) != earlier


def test_another_model_needs_a_word(
    folder: Path, embed: Embed, service: FakeService, capsys: Any
) -> None:
    assert embed("in", "-o", "o.npy") == 0
    about = Path("o.npy.json").read_text()
    Path("o.npy.json").write_text(about.replace("sha256:aaaa", "sha256:cccc"))
    assert embed("in", "-o", "o.npy") == 4
    assert "weights digest was sha256:cccc, now sha256:aaaa" in capsys.readouterr().err


def test_what_cannot_be_understood_is_no_earlier_run(folder: Path) -> None:
    np.save("x.npy", np.zeros(3))
    Path("y.npz").write_bytes(b"PK")
    Path("empty.parquet").touch()
    for name in ("x.npy", "y.npz", "empty.parquet", "absent.safetensors"):
        assert earlier_output(Path(name)) is None
