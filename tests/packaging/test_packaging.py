"""What is shipped: two packages, nothing else, and a client that stays light."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from release_check import problems

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


def test_the_wheel_carries_the_trained_model_in_the_service_alone(wheel: zipfile.ZipFile) -> None:
    weights = [info for info in wheel.infolist() if info.filename.endswith(".safetensors")]
    assert [info.filename for info in weights] == [
        "vim_embed/weights/packaged/vim-micro.safetensors"
    ]
    assert weights[0].file_size < 8_000_000


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


def test_the_pure_wheel_has_no_machine_code(wheel: zipfile.ZipFile) -> None:
    assert str(wheel.filename).endswith("-py3-none-any.whl")
    assert not [name for name in wheel.namelist() if name.endswith((".so", ".dylib"))]


def test_a_platform_wheel_carries_the_prebuilt_kernels(tmp_path: Path) -> None:
    """A stand-in for the libraries: scripts/build_wheels.py compiles the real ones."""
    sources = tmp_path / "sources"
    ignore = shutil.ignore_patterns("__pycache__", "_prebuilt")
    for name in ("service", "client"):
        shutil.copytree(ROOT / name, sources / name, ignore=ignore)
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "-w", str(tmp_path)]
    environment = {**os.environ, "VIM_EMBED_WHEEL_PLATFORM": "manylinux_2_28_x86_64"}
    built = sources / "service/vim_embed/kernels/cpu/_prebuilt"
    refused = subprocess.run(
        [*command, str(sources)], env=environment, capture_output=True, text=True, check=False
    )
    assert refused.returncode != 0
    assert "needs libraries in" in refused.stderr
    built.mkdir()
    (built / "cpu-avx2.so").write_bytes(b"library")
    subprocess.run([*command, str(sources)], env=environment, check=True)
    (made,) = tmp_path.glob("*.whl")
    assert made.name.endswith("-py3-none-manylinux_2_28_x86_64.whl")
    with zipfile.ZipFile(made) as found:
        assert found.read("vim_embed/kernels/cpu/_prebuilt/cpu-avx2.so") == b"library"
        (metadata,) = [name for name in found.namelist() if name.endswith(".dist-info/WHEEL")]
        assert "Root-Is-Purelib: false" in found.read(metadata).decode()


@pytest.mark.parametrize(
    ("tag", "cited", "title", "wrong"),
    [
        ("v1.2.3", "version: 1.2.3", "1.2.3 (2026-12-01)", []),
        ("v1.2.3", 'version: "1.2.3"', "1.2.3 (2026-12-01)", []),
        ("v1.2.3", "version: 1.2.3", "1.2.3 (unreleased)", ["the changelog begins with"]),
        ("v1.2.3", "version: 1.2.2", "1.2.3 (2026-12-01)", ["CITATION.cff has version 1.2.2"]),
        ("v1.2.3", "license: MIT", "1.2.3 (2026-12-01)", ["CITATION.cff has version None"]),
        (
            "v1.2.4",
            "version: 1.2.3",
            "1.2.3 (2026-12-01)",
            ["pyproject.toml has", "the Dockerfile has", "CITATION.cff has", "changelog"],
        ),
    ],
)
def test_a_tag_is_released_with_its_version_everywhere(
    tmp_path: Path, tag: str, cited: str, title: str, wrong: list[str]
) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.2.3"\n')
    (tmp_path / "Dockerfile").write_text("ARG VERSION=1.2.3\n")
    (tmp_path / "CITATION.cff").write_text(f"cff-version: 1.2.0\n{cited}\nlicense: MIT\n")
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n## {title}\n\n- Something.\n")
    found = problems(tag, tmp_path)
    assert len(found) == len(wrong)
    assert all(part in each for part, each in zip(wrong, found, strict=True))
