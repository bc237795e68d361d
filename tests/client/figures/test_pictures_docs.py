"""Every code block of docs/scoring.md, run as it stands."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.table import Table
from PIL import Image

from support.embedding_files import write_embeddings
from vim_embed_client.cli.main import run
from vim_embed_client.results import Provenance

TEXT = (Path(__file__).parents[3] / "docs" / "scoring.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
    for line in block.splitlines()
]
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
N = 40


@pytest.fixture
def survey(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """Two views of the same sources, their images and a catalogue, in the cwd."""
    pytest.importorskip("pyarrow")
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(N, 6))
    views = []
    for name in ("hsc", "jwst"):
        Path(name).mkdir()
        views.append((truth + 0.3 * rng.normal(size=truth.shape)).astype(np.float32))
        ids = [f"{name}/g{row:02}.png" for row in range(N)]
        for path in ids:
            pixels = rng.integers(0, 255, (8, 8, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(path)
        provenance = Provenance(model=f"vim-{name}")
        write_embeddings(Path(f"{name}.parquet"), views[-1], ids, provenance)
        for model in ("tiny", "base"):
            write_embeddings(Path(f"{model}_{name}.npy"), views[-1], ids, provenance)
    for model in "ab":
        for number, view in enumerate(views, start=1):
            noise = rng.normal(size=view.shape).astype(np.float32)
            np.save(f"{model}{number}.npy", view + noise)
    rows = [f"g{row:02},{row / 20},{'spiral' if row % 2 else 'elliptical'}" for row in range(N)]
    Path("catalogue.csv").write_text("\n".join(["id,z,morphology", *rows]))
    Table.read("catalogue.csv", format="ascii.csv").write("catalogue.fits")
    return views[0], views[1]


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_run(survey: Any, line: str, capsys: Any) -> None:
    program, *arguments = shlex.split(line)
    assert program == "vim-embed"
    assert run(arguments) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    if "--json" in arguments:
        assert json.loads(printed)["random_weights"] is False
    flags = [i for i, word in enumerate(arguments) if word in ("-o", "--figure")]
    least = {".tex": 100, ".csv": 100, ".md": 100}
    for path in (Path(arguments[i + 1]) for i in flags):
        assert path.stat().st_size > least.get(path.suffix, 1000)


def test_python_runs(survey: Any, capsys: Any) -> None:
    printed = []
    for block in PYTHON:
        exec(block, {"z1": survey[0], "z2": survey[1]})
        printed.append([line.split()[0] for line in capsys.readouterr().out.splitlines()])
    assert printed == [["cka", "mutual-knn"], ["1", "10", "39"]]
