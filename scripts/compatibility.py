"""The service with other versions of what it stands on, in virtual environments of their own.

    python scripts/compatibility.py                      every combination
    python scripts/compatibility.py --only numpy-1       one of them
    python scripts/compatibility.py --list

Each combination is installed by uv with CPU builds of torch, and runs the tests of what the other
version could change: models and kernels for torch, encoders and weights for transformers, wire
formats, readers and scores for numpy, and rows over HTTP for each. `oldest` is what pyproject.toml
allows, `newest` what the index has.
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
OVER_HTTP = "tests/service/http/test_embed_http.py"
TESTS = {
    "torch": (
        "tests/service/models",
        "tests/service/kernels/test_ops.py",
        "tests/service/kernels/test_parity.py",
        "tests/service/inference",
        "tests/service/engines",
        "tests/service/weights/test_weights.py",
        OVER_HTTP,
    ),
    "transformers": (
        "tests/service/models/test_attention.py",
        "tests/service/models/test_encoders.py",
        "tests/service/models/test_vit.py",
        "tests/service/weights",
        OVER_HTTP,
    ),
    "numpy": (
        "tests/client/test_inputs.py",
        "tests/client/test_wire.py",
        "tests/client/bulk/test_rows.py",
        "tests/client/bulk/test_read_options.py",
        "tests/client/bulk/test_finding.py",
        "tests/client/bulk/test_stretches.py",
        "tests/client/bulk/test_platonic_pixels.py",
        "tests/client/bulk/test_fits_fluxes.py",
        "tests/client/scoring/test_score.py",
        "tests/contract",
        "tests/service/http/test_arrays.py",
        "tests/service/kernels/test_parity.py",
        OVER_HTTP,
    ),
}


def allowed() -> dict[str, str]:
    """The lowest version of each requirement of the service."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["service"]]
    found = (re.match(r"([\w.-]+)(?:\[.*\])?>=([\w.]+)", line) for line in lines)
    return {match[1]: match[2] for match in found if match}


def combinations() -> dict[str, list[str]]:
    """What is asked for beside the service's own requirements, by name."""
    lowest = allowed()
    return {
        "torch-oldest": [f"torch=={lowest['torch']}.*"],
        "torch-newest": ["torch"],
        "transformers-oldest": [f"transformers=={lowest['transformers']}"],
        "transformers-newest": ["transformers"],
        "numpy-1": ["numpy<2", "pyarrow<26"],  # pyarrow 26 needs numpy 2 and does not declare it
    }


def run(requirements: list[str], tests: list[str], options: list[str]) -> int:
    """Install and test; the tests' exit code. options: uv's, when it installs."""
    with tempfile.TemporaryDirectory() as folder:
        python = f"{folder}/venv/bin/python"
        uv = [sys.executable, "-m", "uv"]
        made = [*uv, "venv", "--quiet", f"--python={sys.executable}", f"{folder}/venv"]
        subprocess.run(made, check=True)
        given = any(each.startswith("torch") for each in requirements)
        pins = (ROOT / "constraints.txt").read_text().splitlines()
        torch = [] if given else [pin for pin in pins if pin.startswith("torch==")]
        install = [*uv, "pip", "install", "--quiet", f"--python={python}", *options]
        install += ["-e", ".[service,demo,test,astro,parquet]", *torch, *requirements]
        subprocess.run(install, cwd=ROOT, check=True)
        test = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        quiet = ["-W", "ignore::DeprecationWarning", "-W", "ignore::FutureWarning"]
        return subprocess.run([*test, *quiet, *tests], cwd=ROOT, check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=sorted(combinations()), action="append")
    parser.add_argument("--list", action="store_true")
    parser.add_argument(
        "--uv", default="--torch-backend=cpu", help="options of uv: where CPU builds of torch are"
    )
    parser.add_argument("tests", nargs="*", help="in place of those of each combination")
    given = parser.parse_args()
    chosen = {k: v for k, v in combinations().items() if not given.only or k in given.only}
    if given.list:
        print("\n".join(f"{name}: {' '.join(asked)}" for name, asked in chosen.items()))
        return 0
    codes = {
        name: run(asked, given.tests or list(TESTS[name.partition("-")[0]]), given.uv.split())
        for name, asked in chosen.items()
    }
    for name, code in codes.items():
        print(f"{name}: {'passed' if code == 0 else f'failed ({code})'}")
    return max(codes.values())


if __name__ == "__main__":
    sys.exit(main())
