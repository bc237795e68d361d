"""What is shipped: two packages, nothing else, and a client that stays light."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "-w", str(folder), "."],
        cwd=ROOT,
        check=True,
    )
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_the_wheel_s_top_level(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    packages = {top for top in tops if not top.endswith(".dist-info")}
    assert packages == {"vim_embed", "vim_embed_client", "vim_embed_pixels"}


def test_the_wheel_carries_kernel_sources_and_types(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    assert "vim_embed/kernels/cpu/cpu.cpp" in names
    assert {
        f"vim_embed/http/page/{name}" for name in ("page.html", "page.css", "status.js")
    } <= names
    assert {
        f"{package}/py.typed" for package in ("vim_embed", "vim_embed_client", "vim_embed_pixels")
    } <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.parametrize("module", ["vim_embed_client", "vim_embed_client.cli.main"])
def test_the_client_loads_nothing_heavy(module: str) -> None:
    heavy = ("torch", "fastapi", "transformers", "vim_embed", "pyarrow", "matplotlib", "skimage")
    code = f"import sys, {module}; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_nothing_below_the_batcher_knows_http() -> None:
    package = ROOT / "service" / "vim_embed"
    layers = ("engines", "weights", "inference", "models", "kernels", "types")
    below = [path for layer in layers for path in (package / layer).rglob("*.py")]
    for path in below:
        text = path.read_text()
        for word in ("fastapi", "starlette", "asyncio", "vim_embed.http.app"):
            assert word not in text, f"{path.name} knows {word}"
    for path in (package / "kernels").rglob("*.py"):
        imports = re.findall(r"^(?:from|import) (vim_embed\.models\S*)", path.read_text(), re.M)
        assert not imports, f"{path.name} needs models at run time"
