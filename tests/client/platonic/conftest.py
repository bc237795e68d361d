"""The real host on simulated galaxies, a real service, and weights that both can load."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from safetensors.torch import save_file

from client.fake_service import FakeService
from client.fake_service import serve as serve_fake
from vim_embed.models.vim import Vim, VimConfig, init_random
from vim_embed_client import LocalServer
from vim_embed_client.platonic import remote as remote_module
from vim_embed_client.platonic.interpreter import Interpreter, ask, find

from .host_runs import HOST, Host, forks

SIZES = {"tiny": 192, "small": 384, "base": 768}


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


@pytest.fixture(scope="session")
def server(models: list[str]) -> Iterator[LocalServer]:
    """A service with the three models, in a process of its own, on the CPU."""
    with LocalServer(models, args=["--device", "cpu"], ready_timeout=600) as server:
        yield server


@pytest.fixture(scope="session")
def service(server: LocalServer) -> str:
    """Its URL."""
    return server.url


@pytest.fixture(scope="session")
def host(models: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """platonic-universe 0.1.0 from its package index, attached by the real command."""
    spec = find_spec("pu")
    assert spec is not None, "platonic-universe is not installed: run the tests with `make unit`"
    assert spec.origin is not None
    folder = tmp_path_factory.mktemp("host")
    package = folder / "pu"
    shutil.copytree(Path(spec.origin).parent, package)
    attach = Path(sys.executable).with_name("vim-embed")
    command = [str(attach), "attach", str(package), "--models", "all"]
    subprocess.run(command, check=True, capture_output=True)
    environment = {name: v for name, v in os.environ.items() if not name.startswith("VIM_EMBED_")}
    environment |= {
        "PYTHONPATH": os.pathsep.join([str(folder), str(HOST), os.environ.get("PYTHONPATH", "")]),
        "HF_HUB_OFFLINE": "1",
        "VIM_EMBED_MODELS": ",".join(models),
        "VIM_EMBED_DEVICE": "cpu",
    }
    with tempfile.TemporaryDirectory() as short, forks(short, environment) as address:
        yield Host(package, environment, address)


@pytest.fixture(scope="session")
def answer() -> Interpreter:
    """What the Python says that is guessed for a checkout without an environment of its own."""
    return ask(Path(os.devnull))


@pytest.fixture
def asked_once(monkeypatch: pytest.MonkeyPatch, answer: Interpreter) -> None:
    """To start that Python is most of what a command costs, and all of them ask the same."""

    def answered(package: Path, python: Path | None = None) -> Interpreter:
        return answer if python is None and not find(package)[1] else ask(package, python)

    monkeypatch.setattr("vim_embed_client.cli.attach.ask", answered)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings from outside; services that other tests used are not waited for."""
    for name in ("URL", "API_KEY", "WIRE", "MODELS", "PATIENCE", "DTYPE", "EXACT"):
        monkeypatch.delenv(f"VIM_EMBED_{name}", raising=False)
    monkeypatch.setenv("VIM_EMBED_ALLOW", "missing-sizes")  # most services here have one size
    monkeypatch.setenv("VIM_EMBED_DEVICE", "cpu")
    monkeypatch.setattr(remote_module, "_seen", set())
    monkeypatch.setattr(remote_module, "_POLL_S", 0.02)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeService]:
    """A service with faults on demand."""
    service = FakeService()
    with serve_fake(service.app()) as url:
        monkeypatch.setenv("VIM_EMBED_URL", url)
        yield service
