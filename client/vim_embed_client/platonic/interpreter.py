"""Asks the Python that runs a platonic-universe whether it could run our models there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vim_embed_client.platonic.requirements import polars_fault

_TIMEOUT_S = 120.0
# Imports what the registration imports: neither torch nor the host.
_QUESTION = """
import importlib.metadata as metadata, importlib.util, json
def version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
try:
    import vim_embed_client.platonic
    fault = ""
except Exception as error:
    fault = str(error) or type(error).__name__
spec = importlib.util.find_spec("pu")
places = list(spec.submodule_search_locations or ()) if spec else []
print(json.dumps({"fault": fault, "polars": version("polars"), "pu": places[0] if places else ""}))
"""


@dataclass(frozen=True, kw_only=True)
class Interpreter:
    """What a Python said. fault: why it cannot import vim-embed, or nothing.

    sure: whether it is known to run the package, not only guessed. polars: its version, or
    nothing. pu: the platonic-universe that it imports by itself, or nothing.
    """

    python: Path
    sure: bool = True
    fault: str = ""
    polars: str = ""
    pu: str = ""

    def problems(self, package: Path) -> list[str]:
        """What would end a run of `package` by this Python, or lose its results; with the fix."""
        found = []
        if self.fault:
            found.append(
                f"{self.python} runs this platonic-universe and has no usable vim-embed "
                f"({self.fault}), so a run ends with KeyError: {self.python} -m pip install "
                "vim-embed, or name the right Python with --python"
            )
        if self.sure and self.pu and Path(self.pu).resolve() != package.resolve():
            found.append(
                f"{self.python} imports platonic-universe from {self.pu}, not {package}: attach "
                "that one, or name the right Python with --python"
            )
        if fault := polars_fault(self.polars):
            found.append(f"{self.python}: {fault}")
        return found


def ask(package: Path, python: Path | None = None) -> Interpreter:
    """What the Python that runs `package` (found, unless named) says of itself."""
    sure = True
    if python is None:
        python, sure = find(package)
    try:
        answer = subprocess.run(
            [python, "-c", _QUESTION],
            cwd=package.absolute().anchor,  # where no package is picked up by chance
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
        )
        if answer.returncode:
            last = answer.stderr.strip().splitlines()[-1:]
            return Interpreter(python=python, fault=" ".join(last) or "it failed")
        told = json.loads(answer.stdout.splitlines()[-1])
        return Interpreter(python=python, sure=sure, **told)
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError) as error:
        return Interpreter(python=python, fault=f"it cannot be asked: {error}")


def find(package: Path) -> tuple[Path, bool]:
    """The Python of the environment that `package` lies in, or that its checkout has: sure.

    Else that of the active environment, and at last this one: a guess.
    """
    for path in _own(package.absolute()):
        if path.is_file():
            return path, True
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        for path in _pythons(Path(os.environ.get(variable) or os.devnull)):
            if path.is_file():
                return path, False
    return Path(sys.executable), False


def _own(package: Path) -> Iterator[Path]:
    if Path(sys.prefix) in package.parents:
        yield Path(sys.executable)
    folder = package.parent
    if folder.name in ("site-packages", "dist-packages") and len(folder.parents) > 2:
        yield folder.parents[2] / "bin" / folder.parent.name  # lib/python3.11/site-packages
        yield folder.parents[2] / "bin" / "python"
        yield folder.parents[1] / "Scripts" / "python.exe"
    for parent in (folder, folder.parent):
        for name in (".venv", "venv", "env"):
            yield from _pythons(parent / name)


def _pythons(environment: Path) -> tuple[Path, Path]:
    return environment / "bin" / "python", environment / "Scripts" / "python.exe"
