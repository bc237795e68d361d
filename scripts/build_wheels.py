"""The sdist, the pure wheel and this platform's wheel with prebuilt CPU kernels, in dist/.

    python scripts/build_wheels.py            needs a C++ compiler, and torch for its headers

The platform wheel is tagged for the oldest glibc that its libraries run on (manylinux), as
auditwheel finds it; on macOS for the version of this system.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from vim_embed.kernels.cpu.ops import prebuild

ROOT = Path(__file__).parents[1]
SOURCES = ("service", "client", "pyproject.toml", "hatch_build.py", "README.md", "LICENSE")
PREBUILT = Path("service/vim_embed/kernels/cpu/_prebuilt")


def build(folder: Path, kind: str, dist: Path, **environment: str) -> Path:
    """One distribution of the sources in `folder`. kind: `sdist` or `wheel`."""
    before = set(dist.iterdir())
    command = [sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--outdir", str(dist)]
    subprocess.run([*command, str(folder)], check=True, env={**os.environ, **environment})
    (made,) = set(dist.iterdir()) - before
    return made


def platform_tag(wheel: Path) -> str:
    """The oldest platform that a wheel's libraries run on."""
    if sys.platform != "linux":
        return sysconfig.get_platform().replace("-", "_").replace(".", "_")
    command = [sys.executable, "-m", "auditwheel", "show", str(wheel)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    tags = re.findall(r"manylinux_\d+_\d+_\w+", said)
    if not tags:
        raise SystemExit(f"no manylinux platform fits the libraries:\n{said}")
    return str(tags[0])


def platform_wheel(dist: Path) -> Path:
    """A wheel with the kernels of every CPU that this platform has."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "sources"
        copy.mkdir()
        for name in SOURCES:
            source = ROOT / name
            ignored = shutil.ignore_patterns("__pycache__", "_prebuilt")
            if source.is_dir():
                shutil.copytree(source, copy / name, ignore=ignored)
            else:
                shutil.copy(source, copy / name)
        prebuild(copy / PREBUILT)
        generic = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        trial = Path(scratch) / "trial"
        trial.mkdir()
        tag = platform_tag(build(copy, "wheel", trial, VIM_EMBED_WHEEL_PLATFORM=generic))
        return build(copy, "wheel", dist, VIM_EMBED_WHEEL_PLATFORM=tag)


def main() -> None:
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    dist.mkdir()
    made = [build(ROOT, "sdist", dist), build(ROOT, "wheel", dist), platform_wheel(dist)]
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *made], check=True)
    for path in made:
        print(f"{path.relative_to(ROOT)}  {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
