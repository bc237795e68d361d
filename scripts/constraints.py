"""constraints.txt anew: the versions that the tests run with, for every extra.

    python scripts/constraints.py              keeps the versions that still fit
    python scripts/constraints.py --upgrade    takes the newest that fit

Beside it constraints-hashed.txt has the same versions with the hashes of all their files, for
`pip install --require-hashes -r constraints-hashed.txt`. torch is in the first file only, and its
CUDA packages in neither: which they are is decided by the build of torch that an index has.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PINS = ROOT / "constraints.txt"
HASHED = ROOT / "constraints-hashed.txt"
OF_TORCH = re.compile(r"^(nvidia-|cuda-toolkit|triton==|pip==)")
HEAD = """\
# Versions that the tests ran with: pip install -c constraints.txt. Written by `make constraints`.
# torch is pinned first of all, since an open range pulls gigabytes of CUDA packages; the pin takes
# whatever build the index has, and that names its own CUDA packages.
"""
HASHED_HEAD = """\
# The versions of constraints.txt with the hashes of their files, without torch:
# pip install --require-hashes --no-deps -r constraints-hashed.txt. Written by `make constraints`.
"""
COMPILED = "cuda"  # an extra whose packages are compiled against the torch that is there
# Installed without their dependencies (Makefile), so that nothing asks for them here.
ALONE = re.compile(r"^(platonic-universe|astropt)==.*\n", re.MULTILINE)


def resolved(known: Path, *options: str) -> str:
    """What uv makes of pyproject.toml, beginning with the versions in `known`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [name for name in project["optional-dependencies"] if name != COMPILED]
    extras = [f"--extra={name}" for name in names]
    command = [sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", *extras]
    command += ["--universal", "--python-version=3.11", "--no-header", "--no-annotate", "--quiet"]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "constraints.txt"
        output.write_text(known.read_text() if known.exists() else "")
        subprocess.run([*command, f"--output-file={output}", *options], cwd=ROOT, check=True)
        return output.read_text()


def requirements(text: str) -> list[str]:
    """Each requirement of a file, with its markers and hashes; torch's own packages left out."""
    found = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE)
    return [one for one in found[1:] if not OF_TORCH.match(one)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--upgrade", action="store_true")
    upgrade = ["--upgrade"] if parser.parse_args().upgrade else []
    alone = ALONE.finditer(PINS.read_text())
    pins = [*requirements(resolved(PINS, *upgrade)), *(found[0] for found in alone)]
    PINS.write_text(HEAD + "".join(sorted(pins)))
    hashed = requirements(resolved(PINS, "--generate-hashes"))
    HASHED.write_text(HASHED_HEAD + "".join(one for one in hashed if not one.startswith("torch==")))


if __name__ == "__main__":
    main()
