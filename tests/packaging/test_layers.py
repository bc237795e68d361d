"""`lint-imports` holds the layers that docs/architecture.md draws, and notices who climbs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# The module that gets a wrong import, and the import.
CLIMBS = {
    "service/vim_embed/kernels/ops.py": "import vim_embed.http.app",
    "service/vim_embed/batching/queue.py": "import vim_embed.serving.service",
    "client/vim_embed_client/client.py": "import vim_embed_client.cli.main",
    "client/vim_embed_client/bulk/run.py": "import vim_embed.settings",
    "client/vim_embed_pixels/stretch.py": "import vim_embed_client.errors",
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layers")
    for name in ("service", "client"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(folder / "service"), str(folder / "client")])
    return subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )


def test_the_layers_hold(copy: Path) -> None:
    done = lint(copy)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("module", "wrong"), CLIMBS.items(), ids=lambda value: Path(value).name)
def test_an_import_that_climbs_is_found(copy: Path, module: str, wrong: str) -> None:
    path = copy / module
    before = path.read_text()
    path.write_text(f"{before}\n{wrong}\n")
    try:
        done = lint(copy)
    finally:
        path.write_text(before)
    assert done.returncode == 1
    assert wrong.removeprefix("import ") in done.stdout
