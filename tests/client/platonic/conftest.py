"""The real host on simulated galaxies, a real service, and weights that both can load."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
from safetensors.torch import save_file

from vim_embed.models.vim import Vim, VimConfig, init_random
from vim_embed_client import LocalServer

SIZES = {"tiny": 192, "small": 384, "base": 768}
HOST = Path(__file__).parent / "host"


@pytest.fixture(scope="session")
def models() -> Iterator[list[str]]:
    """`--model` arguments: seeded weights of all three sizes, for small images to be quick."""
    with tempfile.TemporaryDirectory() as folder:
        yield [f"vim-{size}={_checkpoint(Path(folder), size, dim)}" for size, dim in SIZES.items()]


def _checkpoint(folder: Path, size: str, dim: int) -> Path:
    vim = Vim(VimConfig(dim=dim, depth=24, image_size=64 if size == "tiny" else 32))
    init_random(vim, seed=dim)
    path = folder / f"{size}.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in vim.state_dict().items()}, path)
    return path


@contextmanager
def serving(models: list[str]) -> Iterator[LocalServer]:
    """A service in a process of its own, on the CPU."""
    with LocalServer(models, args=["--device", "cpu"]) as server:
        yield server


@pytest.fixture(scope="session")
def service(models: list[str]) -> Iterator[str]:
    """The URL of a service with the three models."""
    with serving(models) as server:
        yield server.url


@dataclass(frozen=True)
class Host:
    """An attached copy of the installed platonic-universe. environment: to run it in."""

    package: Path
    environment: Mapping[str, str]

    def start(self, folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Start the host's own console script in `folder`, where results go to data/."""
        (folder / "data").mkdir(exist_ok=True)
        script = Path(sys.executable).with_name("platonic_universe")
        return self._popen([str(script), *arguments], folder, environment)

    def start_python(self, folder: Path, code: str, **environment: str) -> subprocess.Popen[str]:
        """Start Python code that imports the host."""
        (folder / "data").mkdir(exist_ok=True)
        return self._popen([sys.executable, "-c", code], folder, environment)

    def _popen(
        self, command: list[str], folder: Path, environment: Mapping[str, str]
    ) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            cwd=folder,
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


def finish(process: subprocess.Popen[str]) -> str:
    """The output of a process that must succeed."""
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="session")
def host(models: list[str], tmp_path_factory: pytest.TempPathFactory) -> Host:
    """platonic-universe 0.1.0 from its package index, attached by the real command."""
    spec = find_spec("pu")
    assert spec is not None, "platonic-universe is not installed: run the tests with `make unit`"
    assert spec.origin is not None
    folder = tmp_path_factory.mktemp("host")
    package = folder / "pu"
    shutil.copytree(Path(spec.origin).parent, package)
    attach = Path(sys.executable).with_name("vim-embed")
    subprocess.run([attach, "attach", package], check=True, capture_output=True)
    environment = {name: v for name, v in os.environ.items() if not name.startswith("VIM_EMBED_")}
    environment |= {
        "PYTHONPATH": os.pathsep.join([str(folder), str(HOST), os.environ.get("PYTHONPATH", "")]),
        "HF_HUB_OFFLINE": "1",
        "VIM_EMBED_MODELS": ",".join(models),
        "VIM_EMBED_DEVICE": "cpu",
    }
    return Host(package, environment)
