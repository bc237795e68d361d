"""The real host on simulated galaxies, a real service, and weights that both can load."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

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


@pytest.fixture(scope="session")
def server(models: list[str]) -> Iterator[LocalServer]:
    """A service with the three models, in a process of its own, on the CPU."""
    with LocalServer(models, args=["--device", "cpu"]) as server:
        yield server


@pytest.fixture(scope="session")
def service(server: LocalServer) -> str:
    """Its URL."""
    return server.url


class Run:
    """A run of the host in a process of its own. stdout: what it prints, errors included."""

    def __init__(self, address: str, request: Mapping[str, Any]) -> None:
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(address)
        output, its_output = os.pipe()
        socket.send_fds(self._connection, [json.dumps(request).encode()], [its_output])
        os.close(its_output)
        self.stdout = os.fdopen(output)
        self._told = self._connection.makefile()
        self._pid = int(self._told.readline())
        self._waited_for = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if not self._waited_for:
            with suppress(ProcessLookupError):
                self.kill()
        self.stdout.close()
        self._told.close()
        self._connection.close()

    def kill(self) -> None:
        os.kill(self._pid, signal.SIGKILL)

    def has_ended(self) -> bool:
        return bool(select.select([self._connection], [], [], 0)[0])

    def end(self) -> tuple[int, str]:
        """Wait for it; its exit code, and what it still printed."""
        output = self.stdout.read()
        code = int(self._told.readline())
        self._waited_for = True
        return code, output


@dataclass(frozen=True)
class Host:
    """An attached copy of the installed platonic-universe.

    environment: to run it in. address: the Unix socket of host/forks.py, which has imported it.
    """

    package: Path
    environment: Mapping[str, str]
    address: str

    def start(self, folder: Path, *arguments: str, **environment: str) -> Run:
        """Start the function of the host's console script in `folder`; results go to data/."""
        return self._start(folder, environment, arguments=arguments)

    def start_python(self, folder: Path, code: str, **environment: str) -> Run:
        """Start Python code that imports the host."""
        return self._start(folder, environment, code=code)

    def _start(self, folder: Path, environment: Mapping[str, str], **asked: Any) -> Run:
        (folder / "data").mkdir(exist_ok=True)
        return Run(self.address, {"folder": str(folder), "environment": environment, **asked})


def finish(run: Run) -> str:
    """The output of a run that must succeed."""
    with run:
        code, output = run.end()
    assert code == 0, output
    return output


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


@contextmanager
def forks(folder: str, environment: Mapping[str, str]) -> Iterator[str]:
    """The address at which runs of the host are started: a socket in the folder."""
    address = f"{folder}/runs"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        process = subprocess.Popen(
            [sys.executable, HOST / "forks.py", str(listener.fileno())],
            pass_fds=[listener.fileno()],
            env=environment,
        )
    try:
        yield address
    finally:
        process.kill()
        process.wait()
